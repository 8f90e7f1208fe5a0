"""Fixtures: a control inside the test's own process, and its Redis."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from rae_control.config import ControlConfig
from rae_control.mesh.mesh import Mesh
from rae_control.server.app import create_app
from tests.integration.control.harness import Api, ManualClock, Server, build


@pytest.fixture(scope="session")
def redis_server() -> Iterator[Server]:
    folder = Path(tempfile.mkdtemp(prefix="rae-test-"))
    server = Server(folder)
    server.start()
    yield server
    server.stop()
    shutil.rmtree(folder)


@pytest.fixture
def clock() -> ManualClock:
    return ManualClock()


@pytest.fixture
def config() -> ControlConfig:
    """The contract's periods; the clock is moved by hand."""
    return ControlConfig(reconcile_interval_s=10, rate_limit_per_s=1e6, rate_limit_burst=1e6)


@pytest.fixture
def mesh(
    tmp_path: Path, redis_server: Server, clock: ManualClock, config: ControlConfig
) -> Iterator[Mesh]:
    client = redis.Redis.from_url(redis_server.url)
    client.flushall()
    client.close()
    mesh = build(tmp_path, redis_server, clock, config)
    yield mesh
    mesh.close()


@pytest.fixture
def api(mesh: Mesh, clock: ManualClock) -> Api:
    return Api(create_app(mesh).test_client(), clock)
