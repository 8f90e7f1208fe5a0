"""Limits of one submitter: lanes, queued tasks, requests, blobs."""

from __future__ import annotations

import hashlib
from typing import Any

import gevent
import pytest

from rae_control.mesh.mesh import Mesh
from tests.integration.control.harness import ECHO, Api, ManualClock, refused


def test_limits_on_lanes_queue_and_requests(api: Api, mesh: Mesh) -> None:
    object.__setattr__(
        mesh.config, "__dict__", {**mesh.config.__dict__, "max_lanes": 3, "max_queued": 6}
    )
    tags = [{**ECHO, "requirements": {"tags": [f"t{i}"]}} for i in range(3)]
    api.submit(*tags)
    answer = api.rae("POST", "/tasks", {**ECHO, "requirements": {"tags": ["t9"]}})
    refused(answer, "too_many_lanes")
    assert int(answer.headers["Retry-After"]) > 0
    refused(api.rae("POST", "/tasks", {"tasks": tags * 2}), "queue_full")


def with_limits(mesh: Mesh, **limits: int) -> None:
    object.__setattr__(mesh.config, "__dict__", {**mesh.config.__dict__, **limits})


def test_a_repeated_submit_is_answered_however_full_the_queue_is(api: Api, mesh: Mesh) -> None:
    with_limits(mesh, max_queued=2, max_lanes=1)
    tasks = [{**ECHO, "task_id": "a"}, {**ECHO, "task_id": "b"}]
    api.submit(*tasks)
    again = api.rae("POST", "/tasks", {"tasks": tasks})
    assert again.status_code == 201
    assert [one["created"] for one in again.json["tasks"]] == [False, False]
    refused(api.rae("POST", "/tasks", {**ECHO, "task_id": "c"}), "queue_full")
    refused(
        api.rae("POST", "/tasks", {"tasks": [tasks[0], {**ECHO, "task_id": "c"}]}), "queue_full"
    )


def test_submits_at_the_same_time_do_not_overshoot_the_queue(api: Api, mesh: Mesh) -> None:
    with_limits(mesh, max_queued=5)
    answers = [
        gevent.spawn(api.rae, "POST", "/tasks", {**ECHO, "task_id": f"t{number}"})
        for number in range(20)
    ]
    gevent.joinall(answers)
    codes = [one.value.status_code for one in answers]
    assert (codes.count(201), len(codes)) == (5, 20)


def test_tasks_that_wait_for_their_time_open_lanes_too(api: Api, mesh: Mesh) -> None:
    with_limits(mesh, max_lanes=3)
    later = [
        {**ECHO, "not_before": "2190-01-01T00:00:00Z", "requirements": {"tags": [f"t{number}"]}}
        for number in range(4)
    ]
    api.submit(*later[:3])
    refused(api.rae("POST", "/tasks", later[3]), "too_many_lanes")
    api.submit(later[0])


def lane(number: int, **more: Any) -> dict[str, Any]:
    return {**ECHO, "requirements": {"tags": [f"t{number}"]}, **more}


@pytest.mark.parametrize("when", ["2190-01-01T00:00:00Z", None])
def test_no_submitter_opens_so_many_lanes_that_another_one_has_none(
    api: Api, mesh: Mesh, when: str | None
) -> None:
    with_limits(mesh, max_lanes=400, max_lanes_per_submitter=300)
    many = [lane(number, not_before=when) for number in range(500)]
    refused(api.rae("POST", "/tasks", {"tasks": many}), "too_many_lanes")
    api.submit(*many[:300])
    refused(api.rae("POST", "/tasks", many[300]), "too_many_lanes")
    api.submit(many[0])
    api.submit(*many[:100], who="bob")
    # Everybody's are used up; whoever has few still gets some.
    refused(api.rae("POST", "/tasks", many[101], who="bob"), "too_many_lanes")
    api.submit(*many[:4], who="root")
    refused(api.rae("POST", "/tasks", many[4], who="root"), "too_many_lanes")
    assert mesh.lanes_of == {"alice": 300, "bob": 100, "root": 4}


def test_a_requeue_is_held_to_the_limits_of_a_submit(api: Api, mesh: Mesh) -> None:
    with_limits(mesh, max_lanes_per_submitter=2, max_queued=3)
    for number in range(4):
        api.submit(lane(number, task_id=f"t{number}"))
        api.rae("POST", f"/tasks/t{number}/cancel", {})
    codes = [api.rae("POST", f"/tasks/t{n}/requeue", {}).status_code for n in range(4)]
    assert codes == [200, 200, 429, 429]
    api.submit(lane(0))
    refused(api.rae("POST", "/tasks", lane(0)), "queue_full")
    assert api.task("t3")["state"] == "cancelled"


def test_a_submitters_blobs_have_a_limit_and_make_room_when_they_go(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    with_limits(mesh, max_blob_bytes=20_000)
    kept = api.blob(b"x" * 10_000)
    for number in range(2):
        api.blob(b"%d" % number)  # takes a block of the disk
    new = b"y" * 4096
    answer = api.rae("PUT", f"/blobs/{hashlib.sha256(new).hexdigest()}", new)
    refused(answer, "blobs_full")
    assert int(answer.headers["Retry-After"]) > 0
    api.blob(b"x" * 10_000)
    api.blob(new, who="bob")
    api.submit({**ECHO, "inputs": {"f": {"sha256": kept}}})
    clock.advance(2 * 86400)
    mesh.retention.sweep()
    api.blob(new)


def test_uploads_at_the_same_time_do_not_overshoot_a_submitters_blobs(api: Api, mesh: Mesh) -> None:
    with_limits(mesh, max_blob_bytes=5 * 4096)
    texts = [b"%d" % number for number in range(20)]
    answers = [
        gevent.spawn(api.rae, "PUT", f"/blobs/{hashlib.sha256(text).hexdigest()}", text)
        for text in texts
    ]
    gevent.joinall(answers)
    codes = [one.value.status_code for one in answers]
    assert (codes.count(201), codes.count(429)) == (5, 15)
    # Neither are bytes of refused ones left.
    assert len([path for path in (mesh.data / "blobs").rglob("*") if path.is_file()]) == 5
