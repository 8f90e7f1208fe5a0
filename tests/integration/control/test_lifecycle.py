"""A task's way through control: claims, acks, results, yields, counters, dependencies."""

from __future__ import annotations

import threading
from datetime import datetime, timezone
from typing import Any

import gevent
import pytest

from rae_control.config import ControlConfig
from rae_control.ledger import nodes as ledger_nodes
from rae_control.mesh.mesh import Mesh
from tests.integration.control.harness import (
    ECHO,
    Api,
    ManualClock,
    Server,
    build,
    multipart,
    tick,
    until,
)


def test_a_task_goes_from_submit_to_result(api: Api) -> None:
    api.join("n1")
    task_id = api.submit(ECHO)[0]["task_id"]
    ref = api.take("n1")
    assert ref["task_id"] == task_id
    assert api.task(task_id)["state"] == "running"
    assert api.result("n1", ref, result={"exit_code": 0}).json["state"] == "succeeded"
    assert api.rae("GET", f"/tasks/{task_id}/result").json["result"] == {"exit_code": 0}
    reasons = [e["reason"] for e in api.rae("GET", f"/tasks/{task_id}/events").json["events"]]
    assert reasons == ["submitted", "claimed", "acked", "succeeded"]


def test_the_same_result_twice_is_fine_and_another_one_is_stale(api: Api) -> None:
    api.join("n1")
    api.submit(ECHO)
    ref = api.take("n1")
    assert api.result("n1", ref, result=1).status_code == 200
    assert api.result("n1", ref, result=1).status_code == 200
    late = api.result("n1", ref, result=2)
    assert (late.status_code, late.json["rc"]) == (409, "stale_lease")
    assert api.task(ref["task_id"])["result"] == 1
    reasons = [
        e["reason"] for e in api.rae("GET", f"/tasks/{ref['task_id']}/events").json["events"]
    ]
    assert reasons[-1] == "stale_result"


def test_ack_twice_is_fine(api: Api) -> None:
    api.join("n1")
    api.submit(ECHO)
    ref = api.take("n1")
    assert api.node("n1", "POST", "/tasks/ack", ref).status_code == 200


def test_a_lease_without_ack_goes_back_and_costs_nothing(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    api.join("n1")
    task_id = api.submit(ECHO)[0]["task_id"]
    until(lambda: api.poll("n1").get("task"), "a task for the node")
    tick(mesh, clock, 9)
    assert api.task(task_id)["state"] == "leased"
    tick(mesh, clock, 3)
    view = api.task(task_id)
    assert (view["state"], view["failures"], view["interruptions"]) == ("queued", 0, 0)


def test_expired_lease_returns_the_task_to_its_lane(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    api.join("n1")
    task_id = api.submit(ECHO)[0]["task_id"]
    ref = api.take("n1")
    tick(mesh, clock, 119)
    assert api.task(task_id)["state"] == "running"
    tick(mesh, clock, 3)
    view = api.task(task_id)
    assert (view["state"], view["interruptions"], view["failures"]) == ("queued", 1, 0)
    late = api.result("n1", ref)
    assert (late.status_code, late.json["rc"]) == (409, "stale_lease")


def test_a_heartbeat_renews_only_what_it_lists(api: Api, mesh: Mesh, clock: ManualClock) -> None:
    api.join("n1")
    api.submit(ECHO, ECHO)
    kept, forgotten = api.take("n1"), api.take("n1")
    for _ in range(5):
        tick(mesh, clock, 30)
        api.node("n1", "POST", "/nodes/heartbeat", {"node_id": "n1", "leases": [kept]})
    assert api.task(kept["task_id"])["state"] == "running"
    assert api.task(forgotten["task_id"])["state"] == "queued"


def test_the_answer_to_a_heartbeat_lists_leases_that_are_over(api: Api) -> None:
    api.join("n1")
    api.submit(ECHO)
    ref = api.take("n1")
    gone = {**ref, "lease_id": "0000000000000000"}
    beat = {"node_id": "n1", "leases": [ref, gone]}
    commands = api.node("n1", "POST", "/nodes/heartbeat", beat).json["commands"]
    assert [c["lease_id"] for c in commands] == [gone["lease_id"]]


def test_offline_node_receives_no_task(api: Api, mesh: Mesh, clock: ManualClock) -> None:
    """Contract: A4."""
    api.join("n1")
    tick(mesh, clock, 122)
    api.submit(ECHO)
    answer = api.node("n1", "GET", "/tasks/poll?slots=cpu0")
    assert (answer.status_code, answer.json["rc"]) == (401, "register_again")
    beat = api.node("n1", "POST", "/nodes/heartbeat", {"node_id": "n1"})
    assert beat.json["rc"] == "register_again"
    assert api.rae("GET", "/nodes", who="root").json["nodes"] == []
    shown = api.rae("GET", "/nodes?all=1", who="root").json["nodes"]
    assert [n["state"] for n in shown] == ["offline"]
    assert api.register("n1").status_code == 200
    assert until(lambda: api.poll("n1").get("task"), "a task for the node")


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


@pytest.mark.parametrize(
    ("inventory", "declared", "gets_it"),
    [(True, True, True), (True, None, False), (True, False, False), (False, True, False)],
)
def test_trusted_work_goes_where_node_and_inventory_both_say_so(
    api: Api, inventory: bool, declared: bool | None, gets_it: bool
) -> None:
    """Contract: A10."""
    api.enrol("n1", trusted=inventory)
    assert api.register("n1", trusted=declared).status_code == 200
    api.submit({**ECHO, "requirements": {"trusted": True}})
    assert (api.poll("n1").get("task") is not None) is gets_it


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


def test_an_artifact_may_have_percent_signs_in_its_name(api: Api) -> None:
    api.join("n1")
    api.submit({**ECHO, "artifacts": [{"name": "a%22b %0A c%.txt"}]})
    ref = api.take("n1")
    result = {**ref, "status": "succeeded", "artifacts": [{"name": "a%22b %0A c%.txt", "size": 1}]}
    body = multipart(result, "a%22b %0A c%.txt", b"x")
    kind = "multipart/form-data; boundary=xyz"
    answer = api.node("n1", "POST", "/tasks/result", body, content_type=kind)
    assert answer.json["state"] == "succeeded", answer.json


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


def test_a_failed_dependency_ends_its_dependents_however_long_the_chain(api: Api) -> None:
    api.join("n1")
    chain: list[dict[str, Any]] = [{**ECHO, "task_id": "t0", "max_attempts": 1}]
    chain += [{**ECHO, "task_id": f"t{i}", "depends_on": [f"t{i - 1}"]} for i in range(1, 1000)]
    states = [t["state"] for t in api.submit(*chain)]
    assert states == ["queued"] + ["waiting"] * 999
    ref = api.take("n1")
    api.result("n1", ref, "failed", error={"code": "E_EXIT", "message": ""})
    last = api.task("t999")
    assert (last["state"], last["reason"]) == ("failed", "dependency_failed")


def test_dependents_run_when_everything_they_need_has_succeeded(api: Api) -> None:
    api.join("n1")
    join = {**ECHO, "task_id": "join", "depends_on": ["a", "b"]}
    api.submit({**ECHO, "task_id": "a"}, {**ECHO, "task_id": "b"}, join)
    assert "a (queued), b (queued)" in api.task("join")["why"][0]
    for _ in range(2):
        api.result("n1", api.take("n1"))
    assert api.task("join")["state"] == "queued"
    late = api.submit({**ECHO, "depends_on": ["a"]})
    assert late[0]["state"] == "queued"


def test_not_before_and_expires_at(api: Api, mesh: Mesh, clock: ManualClock) -> None:
    def at(seconds: float) -> str:
        return datetime.fromtimestamp(clock.wall() + seconds, tz=timezone.utc).isoformat()

    later = api.submit({**ECHO, "not_before": at(30)})[0]
    short = api.submit({**ECHO, "expires_at": at(20)})[0]
    assert (later["state"], short["state"]) == ("waiting", "queued")
    tick(mesh, clock, 21)
    assert api.task(short["task_id"])["state"] == "expired"
    tick(mesh, clock, 10)
    assert api.task(later["task_id"])["state"] == "queued"


def test_a_restart_grants_every_open_lease_a_full_period(
    tmp_path: Any, redis_server: Server, config: ControlConfig, clock: ManualClock
) -> None:
    from rae_control.server.app import create_app

    mesh = build(tmp_path, redis_server, clock, config)
    api = Api(create_app(mesh).test_client(), clock)
    api.join("n1")
    api.submit(ECHO)
    ref = api.take("n1")
    tick(mesh, clock, 100)
    mesh.close()
    clock.advance(10_000)
    mesh = build(tmp_path, redis_server, clock, config)
    api.client = create_app(mesh).test_client()
    tick(mesh, clock, 100)
    # The session is known without registering again, and the result is taken exactly once.
    assert api.result("n1", ref, result="late but mine").json["state"] == "succeeded"
    mesh.close()


def test_a_node_that_has_not_called_since_controls_start_was_not_seen_since(
    tmp_path: Any, redis_server: Server, clock: ManualClock, config: ControlConfig
) -> None:
    from rae_control.server.app import create_app

    mesh = build(tmp_path, redis_server, clock, config)
    api = Api(create_app(mesh).test_client(), clock)
    api.join("n1")
    registered = api.rae("GET", "/nodes/n1", who="root").json["last_seen"]
    mesh.close()
    clock.advance(10_000)
    mesh = build(tmp_path, redis_server, clock, config)
    api.client = create_app(mesh).test_client()
    clock.advance(60)
    view = api.rae("GET", "/nodes/n1", who="root").json
    assert (view["state"], view.get("last_seen")) == ("online", None)
    tick(mesh, clock, 200)
    view = api.rae("GET", "/nodes/n1", who="root").json
    assert (view["state"], view["last_seen"]) == ("offline", registered)
    api.join("n1")
    clock.advance(30)
    seen = datetime.fromisoformat(
        api.rae("GET", "/nodes/n1", who="root").json["last_seen"].replace("Z", "+00:00")
    )
    assert clock.wall() - seen.timestamp() == pytest.approx(30, abs=1)
    mesh.close()


def test_time_in_which_control_was_stopped_does_not_count(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    api.join("n1")
    api.submit(ECHO)
    ref = api.take("n1")
    clock.advance(500)
    mesh.reaper.tick()
    tick(mesh, clock, 5)
    assert api.task(ref["task_id"])["state"] == "running"
    assert api.rae("GET", "/nodes/n1", who="root").json["state"] == "online"


def test_registering_again_keeps_what_is_unfinished_and_closes_the_rest(api: Api) -> None:
    api.join("n1")
    api.submit(ECHO, ECHO)
    kept, lost = api.take("n1"), api.take("n1")
    over = {**lost, "lease_id": "0123456789abcdef"}
    answer = api.register("n1", instance="i2", unfinished=[kept, over])
    assert [c["lease_id"] for c in answer.json["commands"]] == [over["lease_id"]]
    assert api.task(lost["task_id"])["state"] == "queued"
    assert api.result("n1", kept).json["state"] == "succeeded"


def graph(prefix: str, **more: Any) -> list[dict[str, Any]]:
    """Two named steps and a last one, the last first, with ids of this run."""
    out = {"artifacts": [{"name": "out", "max_mb": 1}]}
    first, second = f"{prefix}-first", f"{prefix}-second"
    last = {**ECHO, "task_id": f"{prefix}-last", "depends_on": [second, first]}
    after = {"inputs": {"in": {"from_task": first, "artifact": "out"}}, "step_name": "second"}
    return [
        {**last, **more},
        {**ECHO, **out, "task_id": second, **after},
        {**ECHO, **out, "task_id": first, "step_name": "first"},
    ]


def test_a_graph_whose_steps_ran_before_is_taken_and_waits_for_those(api: Api) -> None:
    api.join("n1")
    api.submit(*graph("a"))
    again = api.submit(*graph("b"))
    assert [(ref["task_id"], ref["created"]) for ref in again] == [
        ("b-last", True), ("a-second", False), ("a-first", False)
    ]  # fmt: skip
    # The very same call once more, after a lost answer.
    assert [ref["created"] for ref in api.submit(*graph("b"))] == [False, False, False]
    body = api.rae("GET", "/tasks/b-last").json
    assert body["spec"]["depends_on"] == ["a-second", "a-first"]
    ref = api.take("n1")
    assert ref["task_id"] == "a-first"
    meta = {**ref, "status": "succeeded", "artifacts": [{"name": "out"}]}
    sent = api.node(
        "n1", "POST", "/tasks/result", multipart(meta, "out", b"1"),
        content_type="multipart/form-data; boundary=xyz",
    )  # fmt: skip
    assert sent.json["state"] == "succeeded"
    ref = api.take("n1")
    assert ref["task_id"] == "a-second"
    assert api.result("n1", ref).json["state"] == "succeeded"
    # What needs the first step's artifact finds it under the name that it has.
    (late,) = api.submit(graph("c")[1], graph("c")[2])[:1]
    assert (late["task_id"], late["created"]) == ("a-second", False)
    assert {api.take("n1")["task_id"], api.take("n1")["task_id"]} == {"a-last", "b-last"}


def test_two_tasks_of_one_key_in_one_call_are_one_task(api: Api) -> None:
    one, two, other = api.submit(
        {**ECHO, "idempotency_key": "k"}, {**ECHO, "idempotency_key": "k"}, ECHO
    )
    assert one["task_id"] == two["task_id"] != other["task_id"]
    assert [one["created"], two["created"]] == [True, False]


def test_a_requeue_never_makes_two_live_tasks_of_one_key(api: Api) -> None:
    keyed = {**ECHO, "idempotency_key": "k"}
    first = api.submit(keyed)[0]["task_id"]
    api.rae("POST", f"/tasks/{first}/cancel")
    second = api.submit(keyed)[0]["task_id"]
    refused = api.rae("POST", f"/tasks/{first}/requeue")
    assert (refused.status_code, refused.json["rc"]) == (409, "not_requeueable")
    assert second in refused.json["message"]
    api.rae("POST", f"/tasks/{second}/cancel")
    assert api.rae("POST", f"/tasks/{first}/requeue").json["state"] == "queued"
    assert api.submit(keyed)[0] == {"task_id": first, "state": "queued", "created": False}


def test_idempotency_answers_with_the_first_task(api: Api) -> None:
    body = {**ECHO, "task_id": "mine"}
    assert api.submit(body)[0]["created"] is True
    assert api.submit(body)[0]["created"] is False
    keyed = {**ECHO, "idempotency_key": "k"}
    first, second = api.submit(keyed)[0], api.submit(keyed)[0]
    assert first["task_id"] == second["task_id"]
    assert second["created"] is False
    api.rae("POST", f"/tasks/{first['task_id']}/cancel")
    assert api.submit(keyed)[0]["task_id"] != first["task_id"]


def test_same_step_and_inputs_hash_return_the_cached_job_while_the_first_runs(api: Api) -> None:
    """Contract: D2."""
    api.join("n1")
    step = {**ECHO, "step_name": "render", "inputs_hash": "abc"}
    first = api.submit(step)[0]["task_id"]
    ref = api.take("n1")
    assert api.submit(step)[0]["task_id"] == first
    api.result("n1", ref)
    assert api.submit(step)[0] == {"task_id": first, "state": "succeeded", "created": False}
    assert api.submit({**step, "inputs_hash": "other"})[0]["task_id"] != first


def test_inputs_and_artifacts_pass_from_task_to_task(api: Api) -> None:
    api.join("n1")
    digest = api.blob(b"content of the blob")
    api.submit(
        {**ECHO, "task_id": "one", "inputs": {"in.txt": {"sha256": digest}},
         "artifacts": [{"name": "out/x.txt", "type": "text/plain"}]},
        {**ECHO, "task_id": "two",
         "inputs": {"x.txt": {"from_task": "one", "artifact": "out/x.txt"}}},
    )  # fmt: skip
    ref = api.take("n1")
    path = f"/tasks/one/inputs/in.txt?attempt=1&lease_id={ref['lease_id']}"
    assert api.node("n1", "GET", path).data == b"content of the blob"
    boundary, metadata = "xyz", '{"task_id":"one","status":"succeeded"}'
    body = (
        f'--xyz\r\nContent-Disposition: form-data; name="metadata"\r\n\r\n{metadata}\r\n'
        '--xyz\r\nContent-Disposition: form-data; name="artifacts/out/x.txt"; filename="x"\r\n'
        "Content-Type: text/plain\r\n\r\nartifact bytes\r\n--xyz--\r\n"
    ).encode()
    kind = f"multipart/form-data; boundary={boundary}"
    answer = api.node("n1", "POST", "/tasks/result", body, content_type=kind)
    assert answer.json["state"] == "succeeded", answer.json
    assert api.rae("GET", "/tasks/one/artifacts/out/x.txt").data == b"artifact bytes"
    second = api.take("n1")
    path = f"/tasks/two/inputs/x.txt?attempt=1&lease_id={second['lease_id']}"
    assert api.node("n1", "GET", path).data == b"artifact bytes"


def test_log_chunks_are_kept_in_order_and_twice_is_harmless(api: Api) -> None:
    import base64

    api.join("n1")
    api.submit(ECHO)
    ref = api.take("n1")
    for offset, text in ((0, b"one "), (4, b"two "), (0, b"one "), (8, b"three")):
        chunk = {**ref, "offset": offset, "data": base64.b64encode(text).decode()}
        assert api.node("n1", "POST", "/tasks/log", chunk).status_code == 200
    gap = {**ref, "offset": 100, "data": base64.b64encode(b"x").decode()}
    refused = api.node("n1", "POST", "/tasks/log", gap)
    assert (refused.status_code, refused.json["rc"]) == (416, "log_gap")
    assert refused.json["detail"] == {"offset": 13}
    api.result("n1", ref)
    answer = api.rae("GET", f"/tasks/{ref['task_id']}/log")
    assert answer.data == b"one two three"
    rest = api.rae("GET", f"/tasks/{ref['task_id']}/log?offset=13")
    assert (rest.data, rest.headers["X-RAE-Complete"]) == (b"", "1")


def test_every_heartbeat_and_poll_says_whether_to_drain_however_often_that_changed(
    api: Api,
) -> None:
    api.join("n1")

    def beat() -> dict[str, Any]:
        answer = api.node("n1", "POST", "/nodes/heartbeat", {"node_id": "n1", "leases": []})
        found: dict[str, Any] = answer.json
        return found

    assert (beat()["wanted"], api.poll("n1")["wanted"]) == ("work", "work")
    for verb in ("drain", "resume", "drain"):
        api.rae("POST", f"/nodes/n1/{verb}", {}, who="root")
    first = beat()
    assert [c["command"] for c in first["commands"]] == ["drain"]
    assert first["wanted"] == "drain"
    # That answer was lost, say: the next ones say it again.
    assert (beat()["wanted"], api.poll("n1")["wanted"]) == ("drain", "drain")
    assert api.register("n1").json["wanted"] == "drain"
    api.rae("POST", "/nodes/n1/resume", {}, who="root")
    assert api.poll("n1")["wanted"] == beat()["wanted"] == "work"


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


def test_a_result_is_taken_only_once_its_log_is_on_the_disk(api: Api, mesh: Mesh) -> None:
    api.join("n1")
    api.submit(ECHO)
    ref = api.take("n1")
    log = mesh.data / "logs" / f"{ref['task_id']}.1.log"
    log.symlink_to("/dev/null")  # takes every byte and cannot be synced
    assert api.result("n1", ref).json["rc"] == "disk_low"
    assert api.task(ref["task_id"])["state"] == "running"
    log.unlink()
    log.write_bytes(b"kept")
    assert api.result("n1", ref).json["state"] == "succeeded"


def test_drain_lets_work_finish_and_gives_no_more(api: Api) -> None:
    api.join("n1")
    api.submit(ECHO, ECHO)
    ref = api.take("n1")
    assert (
        api.rae("POST", "/nodes/n1/drain", {"reason": "update"}, who="root").json["state"]
        == "draining"
    )
    assert [c["command"] for c in api.poll("n1")["commands"]] == ["drain"]
    assert api.poll("n1")["reasons"][0]["code"] == "draining"
    assert api.result("n1", ref).json["state"] == "succeeded"
    api.rae("POST", "/nodes/n1/resume", who="root")
    assert [c["command"] for c in api.poll("n1")["commands"]] == ["resume"]
    assert api.take("n1")


def test_heartbeats_and_polls_carry_the_periods_of_a_registration(api: Api) -> None:
    api.enrol("n1")
    names = {
        "heartbeat_interval_sec", "heartbeat_timeout_sec", "lease_margin_s", "ack_timeout_s",
    }  # fmt: skip
    told = api.register("n1").json
    beat = api.node("n1", "POST", "/nodes/heartbeat", {"node_id": "n1"}).json
    for answer in (beat, api.poll("n1")):
        assert {name: answer.get(name) for name in names} == {name: told[name] for name in names}
