"""Errors, interruptions and missing GPUs: what is charged, retried or kept."""

from __future__ import annotations

import pytest

from rae_control.mesh.mesh import Mesh
from tests.integration.control.harness import (
    ECHO,
    Api,
    ManualClock,
    tick,
    until,
)


def test_a_bearer_node_may_fail_twice_with_the_same_words(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    secret = api.enrol("plain", "bearer")
    task_id = api.submit({**ECHO, "max_attempts": 2})[0]["task_id"]
    body = {"node_id": "plain", "capabilities": {}}
    headers = {"Authorization": f"Bearer {secret}"}
    token = api.client.post("/nodes/register", json=body, headers=headers).json["node_token"]
    headers = {"Authorization": f"Bearer {token}"}
    failed = {"task_id": task_id, "status": "failed", "error": {"code": "E_EXIT", "message": "1"}}
    states = []
    for _ in range(2):
        until(
            lambda: api.client.get("/tasks/poll", headers=headers).json.get("task"),
            "a task for the node",
        )
        answer = api.client.post("/tasks/result", json=failed, headers=headers)
        states.append(answer.json["state"])
        tick(mesh, clock, 6)
        api.client.post("/nodes/heartbeat", json={"node_id": "plain"}, headers=headers)
    assert states == ["waiting", "failed"]
    # And once more, because the answer was lost: the same again, nothing new.
    assert api.client.post("/tasks/result", json=failed, headers=headers).json["state"] == "failed"
    assert api.task(task_id)["attempts"] == 2


def test_a_yield_goes_back_to_the_front_without_charge(api: Api) -> None:
    api.join("n1")
    first = api.submit(ECHO)[0]["task_id"]
    ref = api.take("n1")
    api.submit(ECHO)
    body = {**ref, "reason": "owner", "stopped_ms": 12.5}
    assert api.node("n1", "POST", "/tasks/yield", body).json["state"] == "queued"
    again = api.take("n1")
    assert (again["task_id"], again["attempt"]) == (first, 2)
    # The answer was lost and the node says it again: still fine, nothing changes.
    assert api.node("n1", "POST", "/tasks/yield", body).status_code == 200
    assert api.task(first)["state"] == "running"


def test_from_the_third_interruption_in_a_row_a_task_pauses(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    api.join("n1")
    task_id = api.submit(ECHO)[0]["task_id"]
    states = []
    for _ in range(3):
        ref = api.take("n1")
        states.append(
            api.node("n1", "POST", "/tasks/yield", {**ref, "reason": "owner"}).json["state"]
        )
    assert states == ["queued", "queued", "waiting"]
    assert "waits" in api.task(task_id)["why"][0]
    tick(mesh, clock, 11)
    assert api.task(task_id)["state"] == "queued"


def test_a_program_that_fails_never_costs_the_node_anything(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    api.join("n1")
    task_id = api.submit({**ECHO, "max_attempts": 4})[0]["task_id"]
    error = {"code": "E_EXIT", "message": "exit code 1"}
    for _ in range(4):
        ref = api.take("n1")
        api.result("n1", ref, "failed", error=error)
        tick(mesh, clock, 45)
        api.node("n1", "POST", "/nodes/heartbeat", {"node_id": "n1"})
    view = api.task(task_id)
    assert (view["state"], view["failures"], view["error"]["code"]) == ("failed", 4, "E_EXIT")
    assert api.rae("GET", "/nodes/n1", who="root").json["state"] == "online"


@pytest.mark.parametrize("code", ["E_DENY", "E_INVALID", "UI_SESSION_REQUIRED"])
def test_an_error_that_no_retry_can_fix_fails_the_task_at_once(api: Api, code: str) -> None:
    """Contract: C7."""
    api.join("n1")
    api.submit(ECHO)
    ref = api.take("n1")
    answer = api.result("n1", ref, "failed", error={"code": code, "message": "no"})
    assert answer.json["state"] == "failed"


@pytest.mark.parametrize("way", ["result", "yield"])
def test_a_task_that_found_no_gpu_is_queued_again_without_charge(api: Api, way: str) -> None:
    """Contract: C7."""
    api.join("n1")
    api.submit(ECHO)
    ref = api.take("n1")
    if way == "result":
        error = {"code": "E_NOGPU", "message": "gone"}
        answer = api.result("n1", ref, "failed", error=error)
        assert api.result("n1", ref, "failed", error=error).json["state"] == "queued"
    else:
        answer = api.node("n1", "POST", "/tasks/yield", {**ref, "reason": "no_gpu"})
        again = api.node("n1", "POST", "/tasks/yield", {**ref, "reason": "no_gpu"})
        assert (again.status_code, again.json["state"]) == (200, "queued")
    assert (answer.status_code, answer.json["state"]) == (200, "queued"), answer.json
    view = api.task(ref["task_id"])
    assert (view["state"], view["failures"], view["interruptions"]) == ("queued", 0, 0)


def test_a_task_that_no_node_has_a_gpu_for_waits_and_is_kept(api: Api, clock: ManualClock) -> None:
    """Contract: C7."""
    api.join("n1")
    api.submit(ECHO)
    for number in range(4):
        assert api.register("n1").status_code == 200
        ref = api.take("n1")
        api.result("n1", ref, "failed", error={"code": "E_NOGPU", "message": "gone"})
        view = api.task(ref["task_id"])
        assert view["state"] == ("queued" if number < 2 else "waiting")
        clock.advance(3600)  # the longest pause
    assert view["interruptions"] == 0


def test_three_infrastructure_failures_in_a_row_cordon_a_node(api: Api) -> None:
    api.join("n1")
    for _ in range(3):
        api.submit(ECHO)
        ref = api.take("n1")
        body = {**ref, "reason": "infrastructure", "detail": "the disk is full"}
        assert api.node("n1", "POST", "/tasks/yield", body).status_code == 200
    node = api.rae("GET", "/nodes/n1", who="root").json
    assert node["state"] == "cordoned"
    assert "the disk is full" in node["reason"]
    assert api.poll("n1")["reasons"][0]["code"] == "cordoned"
    assert api.rae("POST", "/nodes/n1/resume", who="root").json["state"] == "online"
