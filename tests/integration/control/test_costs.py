"""What the writer does every second, and each claim, costs nothing by how many tasks there are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest

from rae_control.ledger import due, results, retention
from rae_control.ledger import tasks as ledger_tasks
from rae_control.ledger.base import Tx
from rae_control.ledger.claims import LaneOffer, claim
from rae_control.ledger.submit import of_key
from rae_control.mesh.mesh import Mesh
from tests.integration.control.harness import ECHO, Api, ManualClock

LATER, LATEST = "2190-01-01T00:00:00Z", "2190-01-02T00:00:00Z"
MANY = 1000


def cost(mesh: Mesh, function: Callable[[Tx], Any]) -> tuple[Any, int]:
    """What it returns, and how many steps SQLite's machine took for it."""
    steps = 0

    def step() -> bool:
        nonlocal steps
        steps += 1
        return False

    def run(tx: Tx) -> Any:
        tx.db.set_progress_handler(step, 1)
        try:
            return function(tx)
        finally:
            tx.db.set_progress_handler(None)

    return mesh.write(run), steps


def fill(api: Api) -> None:
    """Tasks that wait for their time, that wait for another one, and that are queued."""
    waits = {**ECHO, "not_before": LATER, "expires_at": LATEST}
    api.submit(*[waits] * MANY)
    api.submit(*[{**ECHO, "expires_at": LATEST, "requirements": {"tags": ["none"]}}] * MANY)


@pytest.mark.parametrize(
    "work", [due.due, ledger_tasks.release], ids=["due", "release"]
)  # fmt: skip
def test_a_look_at_what_time_has_brought(api: Api, mesh: Mesh, work: Callable[..., int]) -> None:
    look = partial(work, go_on=lambda: True)
    found, before = cost(mesh, look)
    fill(api)
    again, after = cost(mesh, look)
    assert (found, again) == (0, 0)
    assert after < before + 50


def test_a_claim_from_a_lane_whose_tasks_are_younger_than_thousands_of_others(
    api: Api, mesh: Mesh
) -> None:
    api.join("n1")

    def one() -> int:
        (task,) = api.submit(ECHO)
        row = mesh.read(lambda db: db.execute(
            "SELECT lane_id FROM tasks WHERE task_id = ?", (task["task_id"],)).get)  # fmt: skip
        entry = mesh.nodes.get("n1")
        take = partial(
            claim, node_id="n1", session=entry and entry.token_sha256,
            offers=[LaneOffer(row, "cpu0", 0, ())], lease_id=f"lease-{task['task_id']}",
            acked=True, another=mesh.another,
        )  # fmt: skip
        claimed, steps = cost(mesh, take)
        assert claimed.task["task_id"] == task["task_id"]
        return steps

    before = one()
    fill(api)
    assert one() < before + 50


def test_a_claim_looks_past_some_tasks_that_came_too_late_and_not_past_thousands(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    api.join("n1")
    late = {**ECHO, "expires_at": "2190-01-01T00:00:00Z"}
    api.submit(*[late] * 10, {**ECHO, "task_id": "in-time"})
    mesh.write(lambda tx: tx.run("UPDATE tasks SET expires_at = 1 WHERE expires_at IS NOT NULL"))
    assert api.claim("n1")["task_id"] == "in-time"
    api.submit(*[late] * MANY)
    api.submit({**ECHO, "task_id": "behind-many"})
    mesh.write(lambda tx: tx.run("UPDATE tasks SET expires_at = 1 WHERE expires_at IS NOT NULL"))
    (lane,) = mesh.lanes.lanes
    entry = mesh.nodes.get("n1")
    take = partial(
        claim, node_id="n1", session=entry and entry.token_sha256,
        offers=[LaneOffer(lane, "cpu0", 0, ())], lease_id="some-lease", acked=True,
        another=mesh.another,
    )  # fmt: skip
    claimed, steps = cost(mesh, take)
    assert claimed is None
    assert steps < 20 * MANY
    while mesh.reaper.tick():
        pass
    assert mesh.states["expired"] == MANY + 10
    assert api.claim("n1")["task_id"] == "behind-many"


def test_a_look_at_what_every_node_denied(api: Api, mesh: Mesh) -> None:
    fill(api)
    lane = next(iter(mesh.lanes.lanes))
    found, steps = cost(mesh, partial(results.fail_denied, lane_id=lane, limit=100))
    assert found == 0
    assert steps < 5 * MANY


def test_a_look_at_events_of_nodes_that_are_not_over(api: Api, mesh: Mesh) -> None:
    api.enrol("n1")
    for _ in range(MANY):
        api.rae("POST", "/nodes/n1/drain", {}, who="root")
    found, steps = cost(mesh, partial(retention.forget_node_events, before=5.0, limit=100))
    assert found == 0
    assert steps < 5 * MANY


def test_a_look_for_an_idempotency_key_with_which_very_many_have_failed(
    api: Api, mesh: Mesh
) -> None:
    def fail(count: int) -> None:
        for _ in range(count):
            task_id = api.submit({**ECHO, "idempotency_key": "k"})[0]["task_id"]
            assert api.rae("POST", f"/tasks/{task_id}/cancel", {}).status_code == 200

    look = partial(of_key, submitter="alice", key="k")
    fail(1)
    none, before = cost(mesh, look)
    fail(200)
    none_yet, after = cost(mesh, look)
    assert (none, none_yet) == (None, None)
    assert after < before + 50
    there = api.submit({**ECHO, "idempotency_key": "k"})[0]
    found, _ = cost(mesh, look)
    assert found["task_id"] == there["task_id"]
