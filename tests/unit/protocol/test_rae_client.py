"""RAE's calls: ids made before the first try, artifacts whole or not at all."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from rae_protocol.client import RaeClient
from rae_protocol.errors import RaeError, RemoteError, Unreachable
from rae_protocol.transport import Backoff

VIEW = {
    "task_id": "t1", "state": "running", "kind": "cli", "submitter": "rae", "priority": 5,
    "attempts": 1, "failures": 0, "interruptions": 0, "created_at": "2026-01-01T00:00:00Z",
    "updated_at": "2026-01-01T00:00:00Z",
}  # fmt: skip


@pytest.fixture
def rae(server: Any) -> RaeClient:
    return RaeClient(
        server.url, "token", backoff=Backoff(tries=3, base_s=0.01, cap_s=0.01),
        sleep=lambda _: None,
    )  # fmt: skip


def submitted(*ids: str) -> bytes:
    return json.dumps({"tasks": [{"task_id": i, "state": "queued"} for i in ids]}).encode()


def test_a_submit_that_is_repeated_carries_the_same_ids(
    rae: RaeClient, server: Any, answer: Any
) -> None:
    server.answers[:] = [answer(cut="before"), answer(201, submitted("a", "b"))]
    rae.submit([{"kind": "cli"}, {"kind": "cli", "task_id": "mine"}])
    first, second = (request.body for request in server.requests)
    assert first == second
    ids = [task["task_id"] for task in json.loads(first)["tasks"]]
    assert ids[1] == "mine"
    assert len(ids[0]) == 36


def test_a_wrong_task_is_refused_before_anything_is_sent(rae: RaeClient, server: Any) -> None:
    with pytest.raises(RaeError) as caught:
        rae.submit([{"kind": "cli", "priority": 11}])
    assert caught.value.rc == "invalid_body"
    assert server.requests == []


def test_wait_asks_again_until_the_task_has_ended(rae: RaeClient, server: Any, answer: Any) -> None:
    done = {**VIEW, "state": "succeeded"}
    server.answers[:] = [answer(body=json.dumps(body).encode()) for body in (VIEW, VIEW, done)]
    assert rae.wait("t1").state.value == "succeeded"
    assert [request.target for request in server.requests] == ["/tasks/t1?wait=25"] * 3


def test_wait_ends_with_its_own_limit(server: Any, answer: Any) -> None:
    clock = iter(range(0, 100, 10))
    rae = RaeClient(server.url, "token", monotonic=lambda: float(next(clock)))
    server.answers[:] = [answer(body=json.dumps(VIEW).encode())]
    with pytest.raises(TimeoutError, match="still running"):
        rae.wait("t1", 30)


def test_a_log_is_followed_until_its_attempt_is_complete(
    rae: RaeClient, server: Any, answer: Any
) -> None:
    def piece(text: bytes, end: int, complete: str) -> Any:
        headers = {"X-RAE-Attempt": "2", "X-RAE-Next-Offset": str(end), "X-RAE-Complete": complete}
        return answer(body=text, headers=headers)

    server.answers[:] = [
        piece(b"one ", 4, "0"), piece(b"", 4, "0"), piece(b"two", 7, "1"), piece(b"", 7, "1"),
    ]  # fmt: skip
    assert b"".join(rae.stream_log("t1")) == b"one two"
    assert [request.target for request in server.requests] == [
        "/tasks/t1/log?offset=0&wait=25",
        "/tasks/t1/log?offset=4&wait=25&attempt=2",
        "/tasks/t1/log?offset=4&wait=25&attempt=2",
        "/tasks/t1/log?offset=7&wait=25&attempt=2",
    ]


def test_a_log_without_following_ends_with_what_is_there(
    rae: RaeClient, server: Any, answer: Any
) -> None:
    headers = {"X-RAE-Attempt": "1", "X-RAE-Next-Offset": "3", "X-RAE-Complete": "0"}
    server.answers[:] = [answer(body=b"one", headers=headers), answer(body=b"", headers=headers)]
    assert b"".join(rae.stream_log("t1", follow=False)) == b"one"
    assert server.requests[0].target == "/tasks/t1/log?offset=0&wait=0"


@pytest.mark.parametrize("name", ["n" * 255, "ż" * 127])
def test_an_artifact_may_have_a_name_as_long_as_names_can_be(
    rae: RaeClient, server: Any, answer: Any, tmp_path: Path, name: str
) -> None:
    tag = {"ETag": f'"{hashlib.sha256(b"whole").hexdigest()}"'}
    server.answers[:] = [answer(200, b"whole", tag)]
    assert rae.fetch_artifact("t1", name, tmp_path / name) == 5
    assert [file.name for file in tmp_path.iterdir()] == [name]


def test_an_artifact_replaces_its_file_only_when_it_came_whole(
    rae: RaeClient, server: Any, answer: Any, tmp_path: Path
) -> None:
    target = tmp_path / "out"
    target.write_bytes(b"before")
    named = {"ETag": f'"{hashlib.sha256(b"after").hexdigest()}"'}
    for wrong in (answer(body=b"after", headers=named, cut="after"), answer(body=b"after")):
        server.answers[:] = [wrong]
        with pytest.raises(Unreachable):
            rae.fetch_artifact("t1", "a b", target)
        assert target.read_bytes() == b"before"
    server.answers[:] = [wrong, answer(body=b"after", headers=named)]
    assert rae.fetch_artifact("t1", "a b", target) == 5
    assert target.read_bytes() == b"after"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert server.requests[-1].target == "/tasks/t1/artifacts/a%20b"


DIGEST = hashlib.sha256(b"content").hexdigest()
STORED = json.dumps({"sha256": DIGEST, "size": 7}).encode()


def test_a_blob_is_uploaded_only_when_control_lacks_it(
    rae: RaeClient, server: Any, answer: Any
) -> None:
    server.answers[:] = [answer(headers={"ETag": f'"{DIGEST}"'})]
    assert rae.upload_blob(b"content") == DIGEST
    assert [request.method for request in server.requests] == ["HEAD"]
    server.requests.clear()
    server.answers[:] = [answer(404), answer(201, STORED)]
    assert rae.upload_blob(b"content") == DIGEST
    assert [(r.method, r.body) for r in server.requests] == [("HEAD", b""), ("PUT", b"content")]


def test_a_look_for_a_blob_that_says_nothing_leaves_it_to_the_upload(
    rae: RaeClient, server: Any, answer: Any
) -> None:
    refused = {"rc": "unauthorized", "message": "words", "detail": {}}
    server.answers[:] = [answer(200), answer(401, json.dumps(refused).encode())]
    with pytest.raises(RemoteError, match="words"):
        rae.upload_blob(b"content")
    assert [request.method for request in server.requests] == ["HEAD", "PUT"]


def test_a_token_is_made_once_even_if_the_answer_is_lost(
    rae: RaeClient, server: Any, answer: Any
) -> None:
    server.answers[:] = [answer(503)]
    with pytest.raises(Unreachable):
        rae.add_token("alice", "submit")
    assert len(server.requests) == 1


@pytest.mark.parametrize("cut", ["before", "after"])
def test_a_lost_answer_to_a_requeue_is_not_repeated_and_says_where_to_look(
    rae: RaeClient, server: Any, answer: Any, cut: str
) -> None:
    server.answers[:] = [answer(body=json.dumps(VIEW).encode(), cut=cut)]
    with pytest.raises(Unreachable, match=r"may have acted all the same.*`raectl task t1`"):
        rae.requeue("t1")
    assert len(server.requests) == 1


def test_the_feed_is_read_on_with_its_incarnation_and_shows_what_was_lost(
    rae: RaeClient, server: Any, answer: Any
) -> None:
    page = {"events": [], "next": 7, "lost": True, "incarnation": "abc"}
    old = {"events": [], "next": 7}
    gone = {"rc": "unknown_cursor", "message": "words", "detail": {"newest": 3}}
    server.answers[:] = [
        answer(body=json.dumps(page).encode()), answer(body=json.dumps(old).encode()),
        answer(410, json.dumps(gone).encode()),
    ]  # fmt: skip
    first = rae.events(5)
    assert first.lost
    assert not rae.events(first.next, incarnation=first.incarnation).lost
    with pytest.raises(RemoteError) as caught:
        rae.events(7, task_id="t1", incarnation="abc")
    assert (caught.value.rc, caught.value.detail) == ("unknown_cursor", {"newest": 3})
    assert [request.target for request in server.requests] == [
        "/events?after=5&wait=0", "/events?after=7&wait=0&incarnation=abc",
        "/tasks/t1/events?after=7&wait=0&incarnation=abc",
    ]  # fmt: skip
