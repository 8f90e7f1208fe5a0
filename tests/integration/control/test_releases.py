"""The end of a task that many others need is worked off in pieces, and ends as at once."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from rae_control.config import ControlConfig
from rae_control.ledger.base import BATCH_S
from rae_control.maintenance import backup
from rae_control.mesh.mesh import Mesh
from rae_control.server.app import create_app
from tests.integration.control.conftest import ECHO, Api, ManualClock, Server, build

NEED_IT = [f"d{number}" for number in range(12)]


class SlowClock(ManualClock):
    """Each look at it takes most of what a transaction may take."""

    def boot(self) -> float:
        self.offset += BATCH_S * 0.6
        return super().boot()


@pytest.fixture
def clock() -> ManualClock:
    return SlowClock()


def states(api: Api, *names: str) -> list[str]:
    return [api.task(name)["state"] for name in names]


def sound(mesh: Mesh) -> bool:
    return backup.check_folder(mesh.data, deep=False) == []


@pytest.fixture
def waiting(api: Api, mesh: Mesh) -> Iterator[Api]:
    """Twelve tasks that need `root` and `other`; a thirteenth needs the last of them."""
    api.join("n1")
    api.submit({**ECHO, "task_id": "root", "priority": 9}, {**ECHO, "task_id": "other"})
    both: dict[str, Any] = {**ECHO, "depends_on": ["root", "other"]}
    api.submit(*({**both, "task_id": name} for name in NEED_IT))
    api.submit({**ECHO, "task_id": "last", "depends_on": ["d11"]})
    yield api
    assert sound(mesh)


def test_a_cancelled_task_ends_those_that_need_it_bit_by_bit(waiting: Api, mesh: Mesh) -> None:
    assert waiting.rae("POST", "/tasks/root/cancel", {}).status_code == 200
    assert "waiting" in states(waiting, *NEED_IT)
    assert sound(mesh)
    late = waiting.submit({**ECHO, "task_id": "late", "depends_on": ["root"]})
    assert late[0]["state"] == "failed"
    while mesh.reaper.tick():
        assert sound(mesh)
    assert states(waiting, *NEED_IT, "last", "late") == ["failed"] * 14
    assert waiting.task("d3")["reason"] == "dependency_failed"
    assert "root ended as cancelled" in waiting.task("d3")["error"]["message"]


def test_a_requeue_ends_first_what_waited_for_the_earlier_end(waiting: Api, mesh: Mesh) -> None:
    waiting.rae("POST", "/tasks/root/cancel", {})
    assert waiting.rae("POST", "/tasks/root/requeue", {}).status_code == 200
    late = waiting.submit({**ECHO, "task_id": "late", "depends_on": ["root"]})
    assert late[0]["state"] == "waiting"
    while mesh.reaper.tick():
        pass
    assert states(waiting, *NEED_IT, "last", "late") == ["failed"] * 13 + ["waiting"]


def test_each_dependency_counts_once_whatever_comes_meanwhile(waiting: Api, mesh: Mesh) -> None:
    waiting.rae("POST", "/tasks/d5/cancel", {})
    assert waiting.result("n1", waiting.take("n1")).status_code == 200
    names = ["a-first", "z-late", *NEED_IT]
    for name in names[:2]:
        waiting.submit({**ECHO, "task_id": name, "depends_on": ["root", "other"]})
    assert waiting.rae("POST", "/tasks/d5/requeue", {}).status_code == 200
    assert sound(mesh)
    while mesh.reaper.tick():
        assert sound(mesh)
    assert states(waiting, *names) == ["waiting"] * 14
    assert waiting.result("n1", waiting.take("n1")).status_code == 200
    while mesh.reaper.tick():
        assert sound(mesh)
    assert states(waiting, *names, "last") == ["queued"] * 14 + ["waiting"]


def test_a_restart_goes_on_where_it_was(
    waiting: Api, mesh: Mesh, clock: ManualClock, config: ControlConfig, redis_server: Server,
    tmp_path: Path,
) -> None:  # fmt: skip
    waiting.rae("POST", "/tasks/root/cancel", {})
    assert "waiting" in states(waiting, *NEED_IT)
    mesh.close()
    again = build(tmp_path, redis_server, clock, config)
    try:
        waiting.client = create_app(again).test_client()
        while again.reaper.tick():
            pass
        assert states(waiting, *NEED_IT, "last") == ["failed"] * 13
        assert again.backlog["alice"][0] == again.states["queued"] == 1
    finally:
        again.close()
