"""After a restore no task is leased while work that the backup does not know may be alive."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from pathlib import Path
from typing import Any

import pytest

from rae_control.config import ControlConfig
from rae_control.errors import ConfigError, LedgerLocked
from rae_control.ledger.sqlite import connect, copy_to
from rae_control.maintenance import backup
from rae_control.mesh.mesh import Mesh
from rae_control.server.app import create_app
from tests.integration.control.harness import ECHO, Api, ManualClock, Server, build

TASK = {**ECHO, "task_id": "again"}
Restart = Callable[[Path], Mesh]


@pytest.fixture
def restart(
    api: Api, clock: ManualClock, config: ControlConfig, redis_server: Server
) -> Iterator[Restart]:
    """Start control on a folder; the calls of `api` go there."""
    with ExitStack() as stack:

        def start(data: Path) -> Mesh:
            stack.close()
            mesh = build(data, redis_server, clock, config)
            stack.callback(mesh.close)
            api.client = create_app(mesh).test_client()
            return mesh

        yield start


@pytest.fixture
def archive(api: Api, mesh: Mesh, tmp_path: Path) -> Path:
    """A backup that knows n1, and nothing of the task that n1 begins after it."""
    api.join("n1")
    with closing(connect(mesh.data / "ledger.db", readonly=True)) as db:
        copy_to(db, tmp_path / "old.db")
    api.enrol("late")
    file = tmp_path / "b.tar"
    backup.backup(mesh.data, file)
    api.submit(TASK)
    assert api.take("n1")["task_id"] == "again"
    mesh.close()
    return file


def restore(archive: Path, data: Path, clock: ManualClock, **options: Any) -> None:
    said = list[str]()
    wrong = backup.restore(archive, data, force=True, clock=clock, tell=said.append, **options)
    assert wrong == []
    assert any("leases no task" in text for text in said) is not options.get("nodes_are_dead")


def beat(api: Api, mesh: Mesh, node: str = "n1", **extra: Any) -> None:
    body = {"node_id": node, "leases": [], "incarnation": mesh.ledger.incarnation, **extra}
    assert api.node(node, "POST", "/nodes/heartbeat", body).status_code == 200


def is_held(api: Api, node: str = "n1") -> bool:
    """Whether the queued task is kept back, by the words of poll, detail and /readyz."""
    poll = api.poll(node)
    held = [reason["code"] for reason in poll["reasons"]] == ["restored"]
    assert held is any("backup was restored" in text for text in api.task("again")["why"])
    assert held is ("held" in api.client.get("/readyz").json)
    return held


def second(api: Api) -> None:
    """Another node that would take the task, and the task under its old id."""
    api.join("n2", machine="m2")
    api.submit(TASK)


def test_a_task_that_the_backup_does_not_know_waits_until_its_node_has_reported(
    api: Api, mesh: Mesh, archive: Path, clock: ManualClock, restart: Restart
) -> None:
    restore(archive, mesh.data, clock)
    again = restart(mesh.data)
    second(api)
    assert is_held(api, "n2")
    why = api.task("again")["why"][0]
    assert "or until these nodes have reported: n1. " in why
    assert api.client.get("/readyz").json["held"]["nodes"] == 1
    # Neither another node's word nor a registration is one: the agent may not know yet.
    beat(api, again, "n2")
    assert api.register("n1").status_code == 200
    beat(api, again, incarnation="older")
    beat(api, again, incarnation=None)
    assert is_held(api, "n2")
    beat(api, again)
    again.reaper.tick()
    assert api.take("n2")["task_id"] == "again"
    restart(mesh.data)
    assert not api.client.get("/readyz").json.get("held")


def test_a_report_from_a_second_machine_says_nothing_about_the_first_one(
    api: Api, mesh: Mesh, archive: Path, clock: ManualClock, restart: Restart
) -> None:
    restore(archive, mesh.data, clock)
    again = restart(mesh.data)
    second(api)
    clock.advance(121)
    assert api.register("n1", machine="m3").status_code == 200
    beat(api, again)
    assert api.register("n2", machine="m2").status_code == 200
    assert is_held(api, "n2")


@pytest.mark.parametrize("lost", ["unreadable", "another folder", "another past", "an old copy"])
def test_without_the_ledger_that_was_lost_the_longest_lease_decides(
    api: Api, mesh: Mesh, archive: Path, clock: ManualClock, restart: Restart, tmp_path: Path,
    lost: str,
) -> None:  # fmt: skip
    data = mesh.data
    if lost == "unreadable":
        (data / "ledger.db").write_bytes(b"garbage" * 1000)
        (data / "ledger.db-wal").unlink(missing_ok=True)
    else:
        data = tmp_path / "fresh"
        if lost == "another past":
            data.mkdir()
            restart(data).close()
        if lost == "an old copy":
            data.mkdir()
            (tmp_path / "old.db").rename(data / "ledger.db")
    restore(archive, data, clock)
    # Time passes in three runs of control, and the wall clock is set.
    for seconds in (1200, 1200, 1197):
        again = restart(data)
        assert api.register("n1", machine="m1").status_code == 200
        if api.rae("GET", "/tasks/again").status_code != 200:
            api.submit(TASK)
        beat(api, again)
        assert is_held(api)
        assert api.client.get("/readyz").json["held"].get("nodes") is None
        clock.advance(seconds)
        clock.step(86400)
    again = restart(data)
    assert api.register("n1").status_code == 200
    again.reaper.tick()
    assert api.take("n1")["task_id"] == "again"


def test_a_control_host_that_reboots_again_and_again_does_not_begin_the_wait_anew(
    api: Api, mesh: Mesh, archive: Path, clock: ManualClock, restart: Restart
) -> None:
    restore(archive, mesh.data, clock)
    left = []
    for _ in range(4):
        clock.reboot()
        again = restart(mesh.data)
        assert again.hold is not None
        left.append(again.hold.left(clock.boot()))
        for _ in range(900):
            clock.advance(1)
            again.reaper.tick()
    assert [round(seconds, -2) for seconds in left] == [3600, 2700, 1800, 900]


def test_an_agent_that_left_with_a_goodbye_has_reported(
    api: Api, mesh: Mesh, archive: Path, clock: ManualClock, restart: Restart
) -> None:
    restore(archive, mesh.data, clock)
    restart(mesh.data)
    assert api.register("n1").status_code == 200
    assert api.client.get("/readyz").json["held"]["nodes"] == 1
    assert api.node("n1", "POST", "/nodes/goodbye", {"node_id": "n1"}).status_code == 200
    assert "held" not in api.client.get("/readyz").json


def test_a_client_that_cannot_report_keeps_the_tasks_back_for_the_longest_lease(
    api: Api, mesh: Mesh, clock: ManualClock, restart: Restart, tmp_path: Path
) -> None:
    secret = api.enrol("plain", "bearer")
    headers = {"Authorization": f"Bearer {secret}"}
    body = {"node_id": "plain", "capabilities": {}}
    assert api.client.post("/nodes/register", json=body, headers=headers).status_code == 200
    file = tmp_path / "b.tar"
    backup.backup(mesh.data, file)
    mesh.close()
    restore(file, mesh.data, clock)
    restart(mesh.data)
    assert "nodes" not in api.client.get("/readyz").json["held"]


def test_the_operator_s_word_that_all_nodes_are_dead_ends_the_wait(
    api: Api, mesh: Mesh, archive: Path, clock: ManualClock, restart: Restart
) -> None:
    restore(archive, mesh.data, clock, nodes_are_dead=True)
    again = restart(mesh.data)
    second(api)
    assert not is_held(api, "n2")
    with pytest.raises(LedgerLocked):
        backup.end_hold(mesh.data)
    again.close()
    restore(archive, mesh.data, clock)
    assert backup.end_hold(mesh.data)
    assert not backup.end_hold(mesh.data)
    restart(mesh.data)
    second(api)
    assert api.take("n2")["task_id"] == "again"
    with pytest.raises(ConfigError):
        backup.end_hold(mesh.data / "none")


def test_a_restore_before_the_earlier_one_s_wait_is_over_waits_for_both(
    api: Api, mesh: Mesh, archive: Path, clock: ManualClock, restart: Restart
) -> None:
    restore(archive, mesh.data, clock)
    restart(mesh.data).close()
    restore(archive, mesh.data, clock)
    again = restart(mesh.data)
    assert api.client.get("/readyz").json["held"]["nodes"] == 1
    assert api.register("n1").status_code == 200
    api.submit(TASK)
    beat(api, again)
    again.reaper.tick()
    assert api.take("n1")["task_id"] == "again"
