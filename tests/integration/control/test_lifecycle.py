"""A task from submit to result, and the leases and sessions of the nodes that run it."""

from __future__ import annotations

from datetime import datetime
from typing import Any

import pytest

from rae_control.config import ControlConfig
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


def test_an_artifact_may_have_percent_signs_in_its_name(api: Api) -> None:
    api.join("n1")
    api.submit({**ECHO, "artifacts": [{"name": "a%22b %0A c%.txt"}]})
    ref = api.take("n1")
    result = {**ref, "status": "succeeded", "artifacts": [{"name": "a%22b %0A c%.txt", "size": 1}]}
    body = multipart(result, "a%22b %0A c%.txt", b"x")
    kind = "multipart/form-data; boundary=xyz"
    answer = api.node("n1", "POST", "/tasks/result", body, content_type=kind)
    assert answer.json["state"] == "succeeded", answer.json


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


def test_heartbeats_and_polls_carry_the_periods_of_a_registration(api: Api) -> None:
    api.enrol("n1")
    names = {
        "heartbeat_interval_sec", "heartbeat_timeout_sec", "lease_margin_s", "ack_timeout_s",
    }  # fmt: skip
    told = api.register("n1").json
    beat = api.node("n1", "POST", "/nodes/heartbeat", {"node_id": "n1"}).json
    for answer in (beat, api.poll("n1")):
        assert {name: answer.get(name) for name in names} == {name: told[name] for name in names}
