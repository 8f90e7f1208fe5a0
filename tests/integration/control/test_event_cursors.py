"""`GET /events` never skips events silently: the answer says when a cursor is no good."""

from __future__ import annotations

from typing import Any

import pytest

from rae_control.ledger import views
from rae_control.ledger.base import Tx
from rae_control.mesh.mesh import Mesh
from tests.integration.control.conftest import ECHO, Api, ManualClock

DAY = 86400.0


def feed(api: Api, after: int, who: str = "alice", **more: Any) -> dict[str, Any]:
    query = "".join(f"&{name}={value}" for name, value in more.items())
    found: dict[str, Any] = api.rae("GET", f"/events?after={after}{query}", who=who).json
    return found


def ended(api: Api, task_id: str, who: str = "alice") -> None:
    api.submit({**ECHO, "task_id": task_id}, who=who)
    assert api.rae("POST", f"/tasks/{task_id}/cancel", {}, who=who).status_code == 200


@pytest.mark.parametrize("path", ["/events", "/tasks/mine/events"])
def test_a_cursor_ahead_of_the_newest_event_is_refused_at_once(api: Api, path: str) -> None:
    ended(api, "mine")
    newest = feed(api, 0)["next"]
    assert api.rae("GET", f"{path}?after={newest}").json["events"] == []
    answer = api.rae("GET", f"{path}?after={newest + 1}&wait=60")
    assert (answer.status_code, answer.json["rc"]) == (410, "unknown_cursor")
    assert answer.json["detail"]["newest"] == newest
    assert "after=0" in answer.json["message"]


def test_the_newest_event_counts_even_where_it_was_removed(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    ended(api, "mine")
    cursor = feed(api, 0)["next"]
    clock.advance(91 * DAY)
    mesh.retention.sweep()
    assert feed(api, cursor)["lost"] is False


def test_a_cursor_of_an_earlier_incarnation_is_refused_wherever_it_stands(api: Api) -> None:
    ended(api, "mine")
    page = feed(api, 0)
    assert feed(api, 1, incarnation=page["incarnation"])["events"]
    assert feed(api, 1, incarnation="before-the-restore")["rc"] == "unknown_cursor"


def test_a_cursor_before_removed_events_is_told_so_once(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    ended(api, "first")
    cursor = feed(api, 0)["next"]
    assert feed(api, cursor)["lost"] is False
    ended(api, "second")
    clock.advance(91 * DAY)
    mesh.retention.sweep()
    page = feed(api, cursor)
    assert (page["events"], page["lost"]) == ([], True)
    assert feed(api, page["next"])["lost"] is False
    ended(api, "third")
    page = feed(api, cursor)
    assert page["lost"] is True
    assert {event["task_id"] for event in page["events"]} == {"third"}
    assert feed(api, page["next"])["lost"] is False


def test_only_a_submitter_s_own_removed_events_are_lost_to_it(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    ended(api, "hers")
    hers = feed(api, 0)["next"]
    ended(api, "his", who="bob")
    clock.advance(91 * DAY)
    mesh.retention.sweep()
    assert feed(api, hers)["lost"] is False
    assert feed(api, hers, who="bob")["lost"] is True
    assert feed(api, hers, who="eve")["lost"] is True  # sees everything


def test_removed_events_of_nodes_are_lost_to_who_sees_them(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    api.enrol("n1")
    cursor = feed(api, 0, who="eve")["next"]
    api.register("n1")
    clock.advance(91 * DAY)
    mesh.retention.sweep()
    assert feed(api, cursor, who="eve")["lost"] is True
    assert api.rae("GET", "/events?after=0").json["lost"] is False


def test_reading_on_costs_by_what_is_found_not_by_what_others_did(mesh: Mesh) -> None:
    def crowd(tx: Tx) -> None:
        for name, task in (("bob", None), ("alice", "other"), ("alice", "mine")):
            tx.run(
                "WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < ?)"
                " INSERT INTO events (at, submitter, task_id, reason) SELECT 0, ?, ?, '' FROM n",
                3 if task == "mine" else 20_000, name, task,
            )  # fmt: skip

    mesh.write(crowd)

    def steps(after: int, submitter: str, task_id: str | None) -> int:
        count = 0

        def step() -> bool:
            nonlocal count
            count += 1
            return False

        def read(db: Any) -> None:
            db.set_progress_handler(step, 10)
            try:
                views.events(db, after, 10, submitter=submitter, task_id=task_id)
            finally:
                db.set_progress_handler(None)

        mesh.read(read)
        return count

    assert steps(20_000, "bob", None) < 50
    assert steps(0, "no such submitter", None) < 50
    assert steps(0, "alice", "mine") < 50
