"""Who waits for events is woken by those that he may see, and by no others."""

from __future__ import annotations

from typing import Any

import apsw
import gevent
import pytest

from rae_control.mesh.mesh import Mesh
from tests.integration.control.harness import ECHO, Api, until


@pytest.fixture
def looked(mesh: Mesh) -> list[str]:
    """The statements of the reader that serves calls one after the other."""
    seen: list[str] = []

    def trace(_cursor: apsw.Cursor, sql: str, _values: Any) -> bool:
        seen.append(sql)
        return True

    mesh.read(lambda db: db.set_exec_trace(trace))
    return seen


def looks(looked: list[str]) -> int:
    return sum(sql.startswith("SELECT * FROM events") for sql in looked)


def watch(api: Api, mesh: Mesh, looked: list[str], who: str) -> gevent.Greenlet:
    """Somebody waits for what comes after all that there is, and gets the ids of its tasks."""
    after = mesh.read(lambda db: db.execute("SELECT max(seq) FROM events").get) or 0
    looked.clear()

    def wait() -> list[str]:
        page = api.rae("GET", f"/events?after={after}&wait=30", who=who).json
        return [event.get("task_id") for event in page["events"]]

    watcher = gevent.spawn(wait)
    # Before it waits, and once it is known to wait.
    until(lambda: looks(looked) == 2, "the call looks twice")
    looked.clear()
    return watcher


def test_a_submitter_s_watcher_looks_only_when_it_has_events(
    api: Api, mesh: Mesh, looked: list[str]
) -> None:
    watcher = watch(api, mesh, looked, "bob")
    for number in range(5):
        api.submit({**ECHO, "task_id": f"hers-{number}"})
        api.enrol(f"n{number}")
        api.register(f"n{number}")
    assert looks(looked) == 0
    api.submit({**ECHO, "task_id": "his"}, who="bob")
    assert watcher.get(timeout=10) == ["his"]


def test_who_sees_everything_is_woken_by_tasks_of_all_and_by_nodes(
    api: Api, mesh: Mesh, looked: list[str]
) -> None:
    watcher = watch(api, mesh, looked, "eve")
    api.submit({**ECHO, "task_id": "hers"})
    assert watcher.get(timeout=10) == ["hers"]
    api.enrol("n1")
    watcher = watch(api, mesh, looked, "eve")
    api.register("n1")
    assert watcher.get(timeout=10) == [None]
