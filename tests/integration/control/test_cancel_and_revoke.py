"""Cancels, requeues and revoked nodes while attempts still run."""

from __future__ import annotations

import threading

import gevent
import pytest

from rae_control.ledger import nodes as ledger_nodes
from rae_control.mesh.mesh import Mesh
from tests.integration.control.harness import (
    ECHO,
    Api,
    ManualClock,
    tick,
    until,
)


def test_cancel_reaches_queued_and_running_tasks(api: Api) -> None:
    api.join("n1")
    queued, running = (t["task_id"] for t in api.submit({**ECHO, "priority": 0}, ECHO))
    ref = api.take("n1")
    assert ref["task_id"] == running
    assert api.rae("POST", f"/tasks/{queued}/cancel").json["state"] == "cancelled"
    assert api.rae("POST", f"/tasks/{running}/cancel").json["state"] == "cancelled"
    assert api.rae("POST", f"/tasks/{running}/cancel").json["state"] == "cancelled"
    commands = api.poll("n1", "slots=")["commands"]
    assert [(c["command"], c["lease_id"]) for c in commands] == [("cancel", ref["lease_id"])]
    assert api.result("n1", ref).status_code == 409
    assert api.task(running)["state"] == "cancelled"


def test_a_requeued_task_waits_until_its_cancelled_attempt_is_dead(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    api.join("n1")
    task_id = api.submit(ECHO)[0]["task_id"]
    ref = api.take("n1")
    api.rae("POST", f"/tasks/{task_id}/cancel")
    assert api.rae("POST", f"/tasks/{task_id}/requeue").json["state"] == "waiting"
    assert "surely dead" in api.task(task_id)["why"][0]
    assert api.node("n1", "POST", "/tasks/yield", {**ref, "reason": "cancelled"}).status_code == 200
    assert api.task(task_id)["state"] == "queued"
    # Without the node's word it waits for the whole lease.
    second = api.take("n1")
    api.rae("POST", f"/tasks/{task_id}/cancel")
    api.rae("POST", f"/tasks/{task_id}/requeue")
    tick(mesh, clock, 118)
    assert api.task(task_id)["state"] == "waiting"
    tick(mesh, clock, 4)
    assert api.task(task_id)["state"] == "queued"
    assert api.node("n1", "POST", "/tasks/yield", {**second, "reason": "owner"}).status_code == 409


def test_a_task_cancelled_before_its_ack_may_be_queued_again_at_once(api: Api) -> None:
    api.join("n1")
    task_id = api.submit(ECHO)[0]["task_id"]
    until(lambda: api.poll("n1").get("task"), "a task for the node")
    assert api.task(task_id)["state"] == "leased"
    api.rae("POST", f"/tasks/{task_id}/cancel")
    assert api.rae("POST", f"/tasks/{task_id}/requeue").json["state"] == "queued"


def test_revoke_ends_the_session_and_the_tasks_wait_out_their_leases(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    api.join("n1")
    task_id = api.submit(ECHO)[0]["task_id"]
    ref = api.take("n1")
    assert api.rae("POST", "/nodes/n1/revoke", who="root").json["state"] == "revoked"
    assert api.result("n1", ref).json["rc"] == "register_again"
    assert api.register("n1").json["rc"] == "not_enrolled"
    assert api.task(task_id)["state"] == "waiting"
    tick(mesh, clock, 121)
    assert api.task(task_id)["state"] == "queued"
    old = api.secrets["n1"]
    assert api.enrol("n1") != old


def test_a_lost_order_to_stop_is_repeated_to_a_client_that_lists_no_leases(api: Api) -> None:
    api.join("n1")
    task_id = api.submit(ECHO)[0]["task_id"]
    ref = api.take("n1")
    api.rae("POST", f"/tasks/{task_id}/cancel")
    for _ in range(2):
        answer = api.node("n1", "POST", "/nodes/heartbeat", {"node_id": "n1"})
        assert [c["lease_id"] for c in answer.json["commands"]] == [ref["lease_id"]]
    api.node("n1", "POST", "/tasks/yield", {**ref, "reason": "cancelled"})
    answer = api.node("n1", "POST", "/nodes/heartbeat", {"node_id": "n1"})
    assert answer.json["commands"] == []


@pytest.mark.parametrize("verb", ["drain", "revoke"])
def test_a_claim_that_waits_for_its_turn_gets_nothing_once_the_node_may_not_work(
    api: Api, mesh: Mesh, verb: str
) -> None:
    api.join("n1")
    api.submit(ECHO)
    release = threading.Event()
    # The writer is busy: the claim is decided on what memory knows, and waits.
    busy = gevent.spawn(mesh.write, lambda _: release.wait(10))
    gevent.sleep(0.01)
    order = gevent.spawn(api.rae, "POST", f"/nodes/n1/{verb}", {}, who="root")
    gevent.sleep(0.01)
    claim = gevent.spawn(api.node, "n1", "GET", "/tasks/poll?slots=cpu0")
    gevent.sleep(0.01)
    release.set()
    assert order.get(timeout=10).status_code == 200
    assert "task" not in (claim.get(timeout=10).json or {})
    busy.get()
    assert api.rae("GET", "/tasks").json["tasks"][0]["state"] == "queued"


def test_memory_of_nodes_and_tokens_follows_the_commits_and_not_the_callers(
    mesh: Mesh, api: Api
) -> None:
    api.join("n1")
    row, text = mesh.write(lambda tx: ledger_nodes.add_token(tx, "carol", "submit"))
    headers = {"Authorization": f"Bearer {text}"}
    assert api.client.get("/tasks", headers=headers).status_code == 200
    # Nothing but the transactions themselves: no caller hands a row over afterwards.
    mesh.write(lambda tx: ledger_nodes.set_draining(tx, "n1", "an update"))
    assert mesh.nodes.get("n1").state == "draining"  # type: ignore[union-attr]
    mesh.write(lambda tx: ledger_nodes.infrastructure(tx, "n1", "disk", 1))
    assert mesh.nodes.get("n1").state == "cordoned"  # type: ignore[union-attr]
    mesh.write(lambda tx: ledger_nodes.revoke(tx, "n1", "stolen"))
    assert mesh.nodes.get("n1").state == "revoked"  # type: ignore[union-attr]
    mesh.write(lambda tx: ledger_nodes.revoke_token(tx, row["token_id"]))
    assert api.client.get("/tasks", headers=headers).status_code == 401
