"""Every call of both clients against whatever a proxy or captive portal may answer.

A new public method without a case below fails the first test.
"""

from __future__ import annotations

import hashlib
import inspect
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from rae_protocol import models
from rae_protocol.client import RaeClient
from rae_protocol.errors import RaeError, Unreachable
from rae_protocol.node_client import NodeClient
from rae_protocol.transport import Backoff

LEASE = models.LeaseRef(task_id="t1", attempt=1, lease_id="lease-0001")
TRIES = 3
HTML = b"<!doctype html><title>Log in</title>"
CONTENT = b"content"
SHA256 = hashlib.sha256(CONTENT).hexdigest()

# Neither calls nor what makes one: they only prepare or hold something.
NO_CALLS = {"signed", "clock_offset_s"}


def body(**fields: Any) -> bytes:
    return json.dumps(fields).encode()


FALSE: dict[str, tuple[int, bytes, dict[str, str]]] = {
    "302": (302, b"", {"Location": "/login"}),
    "302 with a body": (302, HTML, {"Location": "/login"}),
    "307": (307, b"", {"Location": "/login"}),
    "304": (304, b"", {}),
    "200 html": (200, HTML, {"Content-Type": "text/html"}),
    "200 empty": (200, b"", {}),
    "204": (204, b"", {}),
    "200 {}": (200, b"{}", {"Content-Type": "application/json"}),
    "200 foreign json": (200, body(status="success", data=[]), {}),
    "200 list": (200, b"[]", {}),
    "200 null": (200, b"null", {}),
    "200 about another task": (200, body(task_id="t2", state="running"), {}),
    "200 with an error's body": (200, body(rc="stale_lease", message="m", detail={}), {}),
    "302 with an error's body": (302, body(rc="stale_lease", message="m", detail={}), {}),
    "403": (403, HTML, {"Content-Type": "text/html"}),
    "403 empty": (403, b"", {}),
    "403 json": (403, body(error="blocked by policy"), {}),
    "404": (404, HTML, {}),
    "409": (409, HTML, {}),
    "401": (401, HTML, {"WWW-Authenticate": "Basic"}),
    "413": (413, HTML, {}),
    "407": (407, HTML, {"Proxy-Authenticate": "Basic"}),
    "502": (502, HTML, {}),
    "511": (511, HTML, {}),
    "stale_lease with 403": (403, body(rc="stale_lease", message="m", detail={}), {}),
}

NODE: dict[str, tuple[Callable[[NodeClient, Path], object], bool]] = {
    # method: (call, whether it is repeated)
    "register": (lambda c, _: c.register(models.RegisterRequest(node_id="n1")), False),
    "heartbeat": (lambda c, _: c.heartbeat(models.Heartbeat(node_id="n1")), False),
    "poll": (lambda c, _: c.poll(wait_s=0, slots=["cpu0"]), False),
    "ack": (lambda c, _: c.ack(LEASE), True),
    "progress": (lambda c, _: c.progress(LEASE, 1.0), False),
    "log": (lambda c, _: c.log(LEASE, 0, b"x"), False),
    "result": (lambda c, _: c.result(models.Result(task_id="t1", status="succeeded")), True),
    "result with artifacts": (
        lambda c, folder: c.result(
            models.Result(task_id="t1", status="succeeded"), [("a", written(folder / "sent"))]
        ),
        False,
    ),
    "yield_task": (lambda c, _: c.yield_task(LEASE, "owner", None, None), True),
    "goodbye": (lambda c, _: c.goodbye(), False),
    "fetch_input": (lambda c, folder: c.fetch_input(LEASE, "a", folder / "got", 100, SHA256), True),
    "fetch_input without a hash": (
        lambda c, folder: c.fetch_input(LEASE, "a", folder / "got", 100),
        True,
    ),
}  # fmt: skip

RAE: dict[str, tuple[Callable[[RaeClient, Path], object], bool]] = {
    "submit": (lambda c, _: c.submit([{"kind": "cli"}]), True),
    "task": (lambda c, _: c.task("t1"), True),
    "tasks": (lambda c, _: c.tasks(), True),
    "wait": (lambda c, _: c.wait("t1"), True),
    "events": (lambda c, _: c.events(), True),
    "stream_log": (lambda c, _: list(c.stream_log("t1")), True),
    "result": (lambda c, _: c.result("t1"), True),
    "fetch_artifact": (lambda c, folder: c.fetch_artifact("t1", "a", folder / "got"), True),
    "cancel": (lambda c, _: c.cancel("t1"), True),
    "requeue": (lambda c, _: c.requeue("t1"), False),
    "upload_blob": (lambda c, _: c.upload_blob(CONTENT), True),
    "nodes": (lambda c, _: c.nodes(), True),
    "node": (lambda c, _: c.node("n1"), True),
    "enrol": (lambda c, _: c.enrol("n1"), True),
    "node_verb": (lambda c, _: c.node_verb("n1", "drain"), True),
    "add_token": (lambda c, _: c.add_token("alice", "submit"), False),
    "tokens": (lambda c, _: c.tokens(), True),
    "revoke_token": (lambda c, _: c.revoke_token("alice"), True),
    "health": (lambda c, _: c.health(), False),
}


def written(path: Path) -> Path:
    path.write_bytes(CONTENT)
    return path


@pytest.mark.parametrize(("client", "cases"), [(NodeClient, NODE), (RaeClient, RAE)])
def test_every_call_has_a_case(client: type, cases: dict[str, Any]) -> None:
    public = {name for name, _ in inspect.getmembers(client) if not name.startswith("_")}
    assert public - NO_CALLS == {name.partition(" ")[0] for name in cases}


def assert_nothing_is_believed(
    server: Any, call: Callable[[], object], repeated: bool, folder: Path
) -> None:
    with pytest.raises(Unreachable) as caught:
        call()
    assert "control" in caught.value.message
    assert not (folder / "got").exists()
    targets = {request.target for request in server.requests}
    assert "/login" not in targets
    looks = [request for request in server.requests if request.method == "HEAD"]
    assert len(server.requests) - len(looks) == (TRIES if repeated else 1)


@pytest.mark.parametrize("kind", ["hmac", "bearer"])
@pytest.mark.parametrize("false", FALSE)
@pytest.mark.parametrize("name", NODE)
def test_a_node_believes_control_alone(
    server: Any, answer: Any, tmp_path: Path, name: str, false: str, kind: str
) -> None:
    server.answers[:] = [answer(*FALSE[false])]
    node = NodeClient(
        server.url, "n1", "secret", kind=kind, sleep=lambda _: None,
        backoff=Backoff(tries=TRIES, base_s=0.01, cap_s=0.01),
    )  # fmt: skip
    node.token = "session"
    call, repeated = NODE[name]
    assert_nothing_is_believed(server, lambda: call(node, tmp_path), repeated, tmp_path)
    assert node.token == "session"


@pytest.mark.parametrize("false", FALSE)
@pytest.mark.parametrize("name", RAE)
def test_a_submitter_believes_control_alone(
    server: Any, answer: Any, tmp_path: Path, name: str, false: str
) -> None:
    server.answers[:] = [answer(*FALSE[false])]
    rae = RaeClient(
        server.url, "token", sleep=lambda _: None,
        backoff=Backoff(tries=TRIES, base_s=0.01, cap_s=0.01),
    )  # fmt: skip
    call, repeated = RAE[name]
    assert_nothing_is_believed(server, lambda: call(rae, tmp_path), repeated, tmp_path)


@pytest.mark.parametrize("name", sorted(RAE.keys() | NODE.keys()))
def test_an_error_of_control_is_believed_at_once(
    server: Any, answer: Any, tmp_path: Path, name: str
) -> None:
    refused = body(rc="forbidden", message="words", detail={})
    server.answers[:] = [answer(403, refused)]
    for client, cases in (
        (NodeClient(server.url, "n1", "secret"), NODE), (RaeClient(server.url, "token"), RAE),
    ):  # fmt: skip
        if name in cases:
            if isinstance(client, NodeClient):
                client.token = "session"
            server.requests.clear()
            with pytest.raises(RaeError) as caught:
                cases[name][0](client, tmp_path)  # type: ignore[arg-type]
            assert (caught.value.rc, caught.value.message) == ("forbidden", "words")
            assert len([r for r in server.requests if r.method != "HEAD"]) == 1


@pytest.mark.parametrize(
    "task",
    [{}, {"task_id": "t1"}, {"payloadType": "x", "payload": "y", "signatures": []}],
    ids=["empty", "part", "envelope"],
)
def test_a_bearer_node_takes_no_task_that_is_none(
    server: Any, answer: Any, task: dict[str, Any]
) -> None:
    server.answers[:] = [answer(200, body(task=task, reasons=[], commands=[]))]
    node = NodeClient(server.url, "n1", "secret", kind="bearer")
    node.token = "session"
    with pytest.raises(Unreachable):
        node.poll(wait_s=0, slots=["cpu0"])


def test_a_submit_answered_for_fewer_tasks_is_not_controls(server: Any, answer: Any) -> None:
    one = body(tasks=[{"task_id": "a", "state": "queued"}])
    server.answers[:] = [answer(201, one)]
    rae = RaeClient(server.url, "token", sleep=lambda _: None)
    with pytest.raises(Unreachable):
        rae.submit([{"kind": "cli"}, {"kind": "cli"}])
