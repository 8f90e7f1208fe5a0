"""The node's calls: signed, repeated only where control takes them twice."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest

from rae_protocol import models, signing
from rae_protocol.errors import EnvelopeError, RemoteError, Unreachable
from rae_protocol.node_client import NodeClient
from rae_protocol.transport import Backoff
from tests.unit.protocol.harness import EMPTY_POLL, LEASE, NOW, REGISTERED, refuse


@pytest.fixture
def waits() -> list[float]:
    return []


@pytest.fixture
def node(server: Any, waits: list[float]) -> NodeClient:
    return NodeClient(
        server.url, "n1", "enrolment", now=lambda: NOW, sleep=waits.append,
        backoff=Backoff(tries=3, base_s=0.01, cap_s=0.01),
    )  # fmt: skip


def assert_signed(request: Any, key: bytes, header: str) -> None:
    fields = signing.parse_signature(header)
    digest = hashlib.sha256(request.body).hexdigest()
    assert fields.keyid == "n1"
    assert signing.signature_matches(fields, key, request.method, request.target, digest)


def test_registering_is_signed_with_the_enrolment_secret(
    node: NodeClient, server: Any, answer: Any
) -> None:
    server.answers[:] = [answer(body=REGISTERED)]
    node.register(models.RegisterRequest(node_id="n1"))
    scheme, _, header = server.requests[0].headers["Authorization"].partition(" ")
    assert scheme == "RAE-HMAC"
    assert_signed(server.requests[0], b"enrolment", header)
    assert node.token == "session-token"


def refuse_fields(*problems: tuple[str, str]) -> bytes:
    found = [{"field": field, "problem": problem} for field, problem in problems]
    detail = {"problems": found}
    return json.dumps({"rc": "invalid_body", "message": "words", "detail": detail}).encode()


def registration() -> models.RegisterRequest:
    capabilities = models.Capabilities(commands=["true"], python_tasks=[])
    return models.RegisterRequest(node_id="n1", capabilities=capabilities)


def test_a_node_registers_at_an_older_control_without_the_fields_that_it_does_not_know(
    node: NodeClient, server: Any, answer: Any
) -> None:
    unknown = "is not known; remove it"
    fields = ("capabilities.commands", unknown), ("capabilities.python_tasks", unknown)
    server.answers[:] = [answer(400, refuse_fields(*fields)), answer(body=REGISTERED)]
    node.register(registration())
    first, second = (json.loads(request.body) for request in server.requests)
    assert {"commands", "python_tasks"} <= set(first["capabilities"])
    del first["capabilities"]["commands"], first["capabilities"]["python_tasks"]
    assert second == first


@pytest.mark.parametrize(
    "problems",
    [
        [("node_id", "is not known; remove it")],  # without it, it is no registration
        [("capabilities.commands", "is too long; change it")],
        [("capabilities.other", "is not known; remove it")],  # was not sent
    ],
)
def test_another_refusal_of_a_body_is_not_tried_again(
    node: NodeClient, server: Any, answer: Any, problems: list[tuple[str, str]]
) -> None:
    server.answers[:] = [answer(400, refuse_fields(*problems))] * 3
    with pytest.raises(RemoteError):
        node.register(registration())
    assert len(server.requests) == 1


def test_later_calls_are_signed_with_the_session_key_over_the_raw_query(
    node: NodeClient, server: Any, answer: Any
) -> None:
    node.token = "session-token"
    server.answers[:] = [answer(body=EMPTY_POLL)]
    node.poll(wait_s=0, slots=["cpu0", "gpu0"], vram_free_mb=15000.4)
    request = server.requests[0]
    assert request.target == "/tasks/poll?wait=0&slots=cpu0%2Cgpu0&vram_free_mb=15000"
    assert request.headers["Authorization"] == "Bearer session-token"
    key = signing.session_key("enrolment", "session-token")
    assert_signed(request, key, request.headers["RAE-Signature"])


def test_a_multipart_result_is_signed_over_the_bytes_that_are_sent(
    node: NodeClient, server: Any, answer: Any, tmp_path: Path
) -> None:
    node.token = "session-token"
    server.answers[:] = [answer(body=b'{"task_id": "t1", "state": "succeeded"}')]
    (tmp_path / "out").write_bytes(bytes(range(256)))
    result = models.Result(task_id="t1", status="succeeded")
    node.result(result, [("dir/out.bin", tmp_path / "out")])
    request = server.requests[0]
    assert b'name="artifacts/dir/out.bin"' in request.body
    assert b'name="metadata"' in request.body
    assert bytes(range(256)) in request.body
    key = signing.session_key("enrolment", "session-token")
    assert_signed(request, key, request.headers["RAE-Signature"])


def test_a_bearer_node_sends_its_token_and_no_signature(server: Any, answer: Any) -> None:
    node = NodeClient(server.url, "n1", "enrolment", kind="bearer")
    server.answers[:] = [answer(body=REGISTERED), answer(body=EMPTY_POLL)]
    node.register(models.RegisterRequest(node_id="n1"))
    node.poll(wait_s=0, slots=None)
    assert server.requests[0].headers["Authorization"] == "Bearer enrolment"
    assert server.requests[1].headers["Authorization"] == "Bearer session-token"
    assert "RAE-Signature" not in server.requests[1].headers


@pytest.mark.parametrize(
    ("rc", "pauses"), [("retry_signed", [1.0, 1.0]), ("skew", [])], ids=["restart", "skew"]
)
def test_a_signature_refused_for_the_clock_is_made_anew_three_times(
    node: NodeClient, server: Any, answer: Any, waits: list[float], rc: str, pauses: list[float]
) -> None:
    server.answers[:] = [answer(401, refuse(rc)), answer(401, refuse(rc)), answer(body=REGISTERED)]
    node.register(models.RegisterRequest(node_id="n1"))
    nonces = {
        signing.parse_signature(r.headers["Authorization"].partition(" ")[2]).nonce
        for r in server.requests
    }
    assert len(nonces) == 3
    assert waits == pauses


def test_control_says_how_long_to_wait_after_its_start(
    node: NodeClient, server: Any, answer: Any, waits: list[float]
) -> None:
    later = answer(401, refuse("retry_signed"), {"Retry-After": "6"})
    server.answers[:] = [later, answer(body=REGISTERED)]
    node.register(models.RegisterRequest(node_id="n1"))
    assert waits == [6.0]


def test_the_fourth_signature_is_not_tried(node: NodeClient, server: Any, answer: Any) -> None:
    server.answers[:] = [answer(401, refuse("retry_signed"))]
    with pytest.raises(RemoteError):
        node.register(models.RegisterRequest(node_id="n1"))
    assert len(server.requests) == 3


def test_after_a_skew_the_offset_of_controls_date_is_in_the_next_signature(
    node: NodeClient, server: Any, answer: Any
) -> None:
    server.answers[:] = [
        answer(401, refuse("skew"), {"Date": "Thu, 01 Jan 2026 01:00:00 GMT"}),
        answer(body=REGISTERED, headers={"Date": "Thu, 01 Jan 2026 01:00:00 GMT"}),
    ]
    node.register(models.RegisterRequest(node_id="n1"))
    header = server.requests[1].headers["Authorization"].partition(" ")[2]
    assert abs(int(signing.parse_signature(header).ts) - (NOW + 3600)) <= 1
    assert abs(node.clock_offset_s - 3600) <= 1


@pytest.mark.parametrize("call", ["register", "poll", "heartbeat", "progress", "log"])
def test_what_must_not_be_repeated_is_sent_once(
    node: NodeClient, server: Any, answer: Any, call: str
) -> None:
    node.token = "session-token"
    server.answers[:] = [answer(cut="before")]
    calls: dict[str, Any] = {
        "register": lambda: node.register(models.RegisterRequest(node_id="n1")),
        "poll": lambda: node.poll(wait_s=0, slots=["cpu0"]),
        "heartbeat": lambda: node.heartbeat(models.Heartbeat(node_id="n1")),
        "progress": lambda: node.progress(LEASE, 50.0),
        "log": lambda: node.log(LEASE, 0, b"x"),
    }
    with pytest.raises(Unreachable):
        calls[call]()
    assert len(server.requests) == 1


@pytest.mark.parametrize("call", ["ack", "result", "yield"])
def test_what_control_takes_twice_is_repeated_with_a_fresh_nonce(
    node: NodeClient, server: Any, answer: Any, call: str
) -> None:
    node.token = "session-token"
    server.answers[:] = [answer(cut="before"), answer(body=b'{"task_id": "t1", "state": "queued"}')]
    calls: dict[str, Any] = {
        "ack": lambda: node.ack(LEASE),
        "result": lambda: node.result(models.Result(task_id="t1", status="succeeded")),
        "yield": lambda: node.yield_task(LEASE, "owner", None, 12.0),
    }
    calls[call]()
    first, second = (
        signing.parse_signature(r.headers["RAE-Signature"]).nonce for r in server.requests
    )
    assert first != second


def test_without_a_session_nothing_is_sent(node: NodeClient, server: Any) -> None:
    with pytest.raises(RemoteError) as caught:
        node.poll(wait_s=0, slots=["cpu0"])
    assert caught.value.rc == "register_again"
    assert server.requests == []


def test_an_input_is_written_only_when_it_came_whole(
    node: NodeClient, server: Any, answer: Any, tmp_path: Path
) -> None:
    node.token = "session-token"
    content, target = b"x" * 1000, tmp_path / "a"
    sha256 = hashlib.sha256(content).hexdigest()
    named = {"ETag": f'"{sha256}"'}
    for wrong in (
        answer(body=content, headers=named, cut="after"), answer(body=content),
        answer(body=b"y" * 1000, headers=named), answer(body=content + b"x", headers=named),
        answer(body=content, headers={"ETag": f'"{"0" * 64}"'}),
    ):  # fmt: skip
        server.answers[:] = [wrong]
        with pytest.raises(Unreachable):
            node.fetch_input(LEASE, "a", target, 1000, sha256)
        assert not target.exists()
    server.answers[:] = [wrong, answer(body=content, headers=named)]
    node.fetch_input(LEASE, "dir/a b", target, 1000, sha256)
    assert target.read_bytes() == content
    assert server.requests[-1].target == (
        "/tasks/t1/inputs/dir/a%20b?attempt=1&lease_id=lease-0001"
    )


@pytest.mark.parametrize("kind", ["bearer", "hmac"])
def test_an_answer_to_a_poll_that_comes_twice_brings_no_task_the_second_time(
    server: Any, answer: Any, kind: str
) -> None:
    # A proxy may repeat it, and the lease may be running, or its result on the way.
    signer = signing.EnvelopeSigner(bytes(32))
    leased = models.LeasedTask(
        **LEASE.model_dump(), slot="cpu0", kind="cli", params={}, timeout_s=1, lease_ttl_s=120,
        node_id="n1", incarnation="i1", issued_at=NOW, expires_at=NOW + 60,
    )  # fmt: skip
    body = leased.model_dump(mode="json", exclude_none=True)
    task = signer.seal(models.canonical(body)) if kind == "hmac" else body
    polled = json.dumps({"task": task, "reasons": [], "commands": []}).encode()
    node = NodeClient(
        server.url, "n1", "enrolment", kind=kind, public_keys=[signer.public_key], now=lambda: NOW
    )
    node.token = "session-token"
    server.answers[:] = [answer(body=polled)]
    first = node.poll(wait_s=0, slots=["cpu0"]).task
    assert first is not None and first.lease_id == LEASE.lease_id
    with pytest.raises(EnvelopeError, match="seen before"):
        node.poll(wait_s=0, slots=["cpu0"])
