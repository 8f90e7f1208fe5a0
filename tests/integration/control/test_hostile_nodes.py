"""An enrolled node fills neither the disk nor the history with what is not its own work."""

from __future__ import annotations

from typing import Any

import gevent
import pytest

from rae_control import wire
from rae_control.core.gate import Budget
from rae_control.mesh.mesh import Mesh
from rae_protocol.names import MAX_JSON_BYTES
from tests.integration.control.harness import ECHO, Api, ManualClock, multipart, refused, tick

KIND = "multipart/form-data; boundary=xyz"
DECLARES = {**ECHO, "artifacts": [{"name": "a.bin"}]}


def send(api: Api, node_id: str, result: dict[str, Any], name: str = "a.bin") -> Any:
    body = multipart({"status": "succeeded", **result}, name, b"x" * 100_000)
    return api.node(node_id, "POST", "/tasks/result", body, content_type=KIND)


def blobs(mesh: Mesh) -> list[str]:
    return [path.name for path in (mesh.data / "blobs").rglob("*") if path.is_file()]


def reasons(api: Api, task_id: str) -> list[str]:
    events = api.rae("GET", f"/tasks/{task_id}/events").json["events"]
    return [event["reason"] for event in events if event["reason"].startswith("stale_")]


def test_without_a_lease_of_its_own_a_node_stores_no_artifact(api: Api, mesh: Mesh) -> None:
    api.join("n1")
    api.join("n2", machine="m2")
    (task,) = api.submit(DECLARES)
    ref = api.take("n1")
    ghost = {"task_id": "ghost", "attempt": 1, "lease_id": "0" * 16}
    for claimed in (
        ref, {"task_id": task["task_id"]}, {**ref, "lease_id": "0" * 16}, {**ref, "attempt": 9},
        {"task_id": "ghost"}, ghost,
    ):  # fmt: skip
        refused(send(api, "n2", claimed), "stale_lease")
    refused(send(api, "n1", {**ref, "attempt": 9}), "stale_lease")
    assert blobs(mesh) == []
    assert send(api, "n1", ref).json["state"] == "succeeded"
    assert len(blobs(mesh)) == 1


def test_what_the_task_does_not_declare_or_keep_is_not_stored(api: Api, mesh: Mesh) -> None:
    api.join("n1")
    api.submit(DECLARES)
    ref = api.take("n1")
    refused(send(api, "n1", ref, name="b.bin"), "artifact_mismatch")
    wrong = {**ref, "artifacts": [{"name": "a.bin", "sha256": "0" * 64}]}
    refused(send(api, "n1", wrong), "artifact_mismatch")
    assert send(api, "n1", {**ref, "status": "failed"}).status_code == 200
    assert blobs(mesh) == []


@pytest.mark.parametrize("as_file", [True, False])
def test_what_a_task_returned_is_as_small_beside_artifacts_as_alone(
    api: Api, mesh: Mesh, *, as_file: bool
) -> None:
    api.join("n1")
    api.submit(DECLARES)
    ref = api.take("n1")
    body = multipart({**ref, "status": "succeeded", "result": "x" * MAX_JSON_BYTES}, "a.bin", b"x")
    if as_file:
        body = body.replace(b'name="metadata"', b'name="metadata"; filename="metadata.json"', 1)
    answer = api.node("n1", "POST", "/tasks/result", body, content_type=KIND)
    refused(answer, "body_too_large")
    assert blobs(mesh) == []
    assert send(api, "n1", ref).json["state"] == "succeeded"


def test_a_result_with_artifacts_that_is_repeated_is_answered_and_stored_once(
    api: Api, mesh: Mesh
) -> None:
    api.join("n1")
    api.submit(DECLARES)
    ref = api.take("n1")
    for _ in range(3):
        assert send(api, "n1", ref).json["state"] == "succeeded"
    assert len(blobs(mesh)) == 1


@pytest.mark.parametrize("call", ["ack", "progress", "result", "yield"])
def test_a_node_writes_no_line_into_the_history_of_a_task_that_it_never_had(
    api: Api, call: str
) -> None:
    api.join("n1")
    api.join("n2", machine="m2")
    api.submit(ECHO)
    ref = api.take("n1")
    more = {"progress": {"pct": 5}, "result": {"status": "failed"}, "yield": {"reason": "owner"}}
    body = more.get(call, {})
    for claimed in (ref, {**ref, "lease_id": "0" * 16}, {**ref, "attempt": 3}):
        refused(api.node("n2", "POST", f"/tasks/{call}", {**claimed, **body}), "stale_lease")
    assert reasons(api, ref["task_id"]) == []


def test_calls_on_an_attempt_that_is_over_leave_one_line_each(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    api.join("n1")
    api.submit(ECHO)
    ref = api.take("n1")
    tick(mesh, clock, 125)
    for attempt in (1, 1, 2, 3):
        late = {**ref, "attempt": attempt}
        refused(api.node("n1", "POST", "/tasks/progress", {**late, "pct": 5}), "stale_lease")
        refused(api.node("n1", "POST", "/tasks/ack", late), "stale_lease")
    assert sorted(reasons(api, ref["task_id"])) == ["stale_ack", "stale_progress"]


def test_bodies_that_a_node_has_under_way_have_a_limit(api: Api) -> None:
    api.join("n1")
    api.join("n2", machine="m2")
    bodies = wire.Bodies()
    bodies.known = Budget(each=1000, total=10_000)
    api.client.application.extensions["bodies"] = bodies
    assert bodies.known.take(("node", "n1"), 950)  # of a request that still sends
    refused(api.node("n1", "POST", "/nodes/heartbeat", {"node_id": "n1"} | LARGE), "rate_limited")
    assert api.node("n2", "POST", "/nodes/heartbeat", {"node_id": "n2"}).status_code == 200
    bodies.known.give(("node", "n1"), 950)
    assert api.node("n1", "POST", "/nodes/heartbeat", {"node_id": "n1"}).status_code == 200
    assert bodies.known == Budget(each=1000, total=10_000)


LARGE = {"reasons": ["x" * 100]}


def test_of_many_results_of_a_lease_at_once_one_is_taken_and_no_bytes_are_left(
    api: Api, mesh: Mesh
) -> None:
    api.join("n1")
    api.submit(DECLARES)
    ref = api.take("n1")
    sends = [
        gevent.spawn(
            api.node, "n1", "POST", "/tasks/result",
            multipart({"status": "succeeded", **ref}, "a.bin", b"%d" % number * 100_000),
            content_type=KIND,
        )
        for number in range(12)
    ]  # fmt: skip
    gevent.joinall(sends)
    codes = [one.value.status_code for one in sends]
    assert (codes.count(200), codes.count(409)) == (1, 11)
    assert len(blobs(mesh)) == 1


def test_a_node_that_claims_and_never_acks_keeps_no_task_from_others(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    api.join("n1")
    api.join("n2", machine="m2")
    (task,) = api.submit(ECHO)
    assert api.claim("n1")["task_id"] == task["task_id"]
    tick(mesh, clock, 12)
    assert api.poll("n1").get("task") is None
    assert api.take("n2")["task_id"] == task["task_id"]


def test_claims_without_an_ack_come_less_and_less_often(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    api.join("n1")
    (task,) = api.submit(ECHO)
    for _ in range(360):  # an hour
        api.poll("n1")
        tick(mesh, clock, 10)
        api.node("n1", "POST", "/nodes/heartbeat", {"node_id": "n1"})
    view = api.task(task["task_id"])
    assert 5 < view["attempts"] < 20
    assert (view["interruptions"], view["failures"]) == (0, 0)
    assert view["state"] in {"waiting", "queued", "leased"}
