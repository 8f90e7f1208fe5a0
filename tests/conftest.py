"""Fixtures that several folders use: meshes of real processes, and a node's folders and log."""

from __future__ import annotations

import socket
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from rae_node.config.layout import Layout
from rae_node.telemetry.log import EventLog
from tests.fake_nvml import FakeNvml, build
from tests.harness import MakeMesh
from tools.devmesh import DevMesh


@pytest.fixture
def make_mesh() -> Iterator[MakeMesh]:
    """Start meshes with settings of the test's own; nothing of them outlives the test."""
    with ExitStack() as stack:

        def make(*nodes: str, **settings: Any) -> DevMesh:
            return stack.enter_context(DevMesh(nodes, **settings))

        yield make


@pytest.fixture(scope="session")
def nvml_library(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a libnvidia-ml.so.1 that does what a file says."""
    return build(tmp_path_factory.mktemp("nvml"))


@pytest.fixture
def fake_nvml(nvml_library: Path, tmp_path: Path) -> FakeNvml:
    """An NVML of the test's own, with one GPU at rest."""
    return FakeNvml(nvml_library, tmp_path / "nvml.txt")


@pytest.fixture
def free_port() -> Iterator[int]:
    """A port without a listener, reserved while the test runs."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        yield held.getsockname()[1]


@pytest.fixture(scope="module")
def control() -> Iterator[DevMesh]:
    """One control without agents for each file: its tests bring their own node, or need none."""
    with DevMesh(()) as mesh:
        yield mesh


@pytest.fixture(scope="module")
def mesh() -> Iterator[DevMesh]:
    """One mesh with two agents for each file, for tests that leave it as they found it."""
    with DevMesh(("n1", "n2")) as running:
        yield running


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    found = Layout(tmp_path / "node")
    found.create()
    return found


@pytest.fixture
def quiet_log() -> Iterator[EventLog]:
    with Path("/dev/null").open("w") as stream:
        yield EventLog("n1", stream)
