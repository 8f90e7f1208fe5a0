"""A node takes a task only from an envelope that control sealed, for it, now, and once."""

from __future__ import annotations

import base64
import copy
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rae_protocol import signing
from rae_protocol.errors import EnvelopeError
from rae_protocol.node_client import NodeClient

SIGNER = signing.EnvelopeSigner(bytes(range(32)))
NOW = 1_767_225_640.0


def task(**changes: Any) -> bytes:
    body = {
        "task_id": "t1", "attempt": 1, "lease_id": "lease-0001", "slot": "cpu0", "kind": "cli",
        "params": {}, "timeout_s": 60.0, "lease_ttl_s": 120.0, "node_id": "n1",
        "incarnation": "i1", "issued_at": NOW - 1, "expires_at": NOW + 59,
    }  # fmt: skip
    return json.dumps(body | changes).encode()


def client(url: str, keys: tuple[str, ...] = (SIGNER.public_key,)) -> NodeClient:
    made = NodeClient(url, "n1", "secret", public_keys=keys, now=lambda: NOW)
    made.token = "session"
    return made


def poll(
    server: Any, answer: Any, *envelopes: dict[str, Any], node: NodeClient | None = None
) -> Any:
    server.answers[:] = [
        answer(body=json.dumps({"task": envelope, "reasons": [], "commands": []}).encode())
        for envelope in envelopes
    ]
    node = node or client(server.url)
    polled = None
    for _ in envelopes:
        polled = node.poll(wait_s=0, slots=["cpu0"])
    return polled


def test_what_control_sealed_opens_to_the_same_bytes() -> None:
    assert signing.open_envelope(SIGNER.seal(task()), [SIGNER.public_key]) == json.loads(task())


def test_one_good_signature_by_any_known_key_is_enough() -> None:
    other = signing.EnvelopeSigner(bytes(32))
    sealed, extra = SIGNER.seal(task()), other.seal(task())
    sealed["signatures"] = [*extra["signatures"], *sealed["signatures"]]
    assert signing.open_envelope(sealed, [other.public_key]) == json.loads(task())
    assert signing.open_envelope(sealed, [SIGNER.public_key]) == json.loads(task())


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (("payloadType",), "application/json"),
        (("payload",), base64.b64encode(task(task_id="t2")).decode()),
        (("payload",), "not base64!"),
        (("payload",), 5),
        (("signatures", 0, "sig"), base64.b64encode(bytes(64)).decode()),
        (("signatures", 0, "sig"), ""),
        (("signatures", 0, "sig"), None),
        (("signatures",), []),
        (("signatures",), "text"),
        (("signatures",), None),
    ],
)
def test_an_altered_envelope_is_refused(path: tuple[Any, ...], value: Any) -> None:
    sealed = copy.deepcopy(SIGNER.seal(task()))
    place: Any = sealed
    for step in path[:-1]:
        place = place[step]
    place[path[-1]] = value
    with pytest.raises(EnvelopeError):
        signing.open_envelope(sealed, [SIGNER.public_key])


@pytest.mark.parametrize("missing", ["payloadType", "payload", "signatures"])
def test_an_envelope_without_a_part_is_refused(missing: str) -> None:
    sealed = SIGNER.seal(task())
    del sealed[missing]
    with pytest.raises(EnvelopeError):
        signing.open_envelope(sealed, [SIGNER.public_key])


def test_a_strangers_signature_is_refused() -> None:
    sealed = signing.EnvelopeSigner(bytes(32)).seal(task())
    with pytest.raises(EnvelopeError, match="no signature of control"):
        signing.open_envelope(sealed, [SIGNER.public_key])


def test_a_node_without_keys_takes_nothing() -> None:
    with pytest.raises(EnvelopeError):
        signing.open_envelope(SIGNER.seal(task()), [])


@pytest.mark.parametrize("payload", [b"[]", b"5", b"not json", b"\xff\xfe", b""])
def test_a_sealed_payload_that_is_no_object_is_refused(payload: bytes) -> None:
    with pytest.raises(EnvelopeError):
        signing.open_envelope(SIGNER.seal(payload), [SIGNER.public_key])


@given(st.binary(max_size=200), st.integers(0, 10_000))
def test_no_flipped_bit_survives(payload: bytes, place: int) -> None:
    sealed = SIGNER.seal(b'{"a":"' + base64.b64encode(payload) + b'"}')
    raw = bytearray(base64.b64decode(sealed["payload"]))
    raw[place % len(raw)] ^= 1 << (place % 8)
    sealed["payload"] = base64.b64encode(bytes(raw)).decode()
    with pytest.raises(EnvelopeError):
        signing.open_envelope(sealed, [SIGNER.public_key])


def test_the_encoding_under_the_signature_is_dsses() -> None:
    # The example of DSSE's own protocol.md.
    expected = b"DSSEv1 29 http://example.com/HelloWorld 11 hello world"
    assert signing.pae("http://example.com/HelloWorld", b"hello world") == expected


def test_a_node_takes_its_own_fresh_task(server: Any, answer: Any) -> None:
    assert poll(server, answer, SIGNER.seal(task())).task.task_id == "t1"


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"node_id": "n2"}, "meant for node n2"),
        ({"expires_at": NOW - 1}, "has expired"),
        ({"expires_at": NOW}, "has expired"),
    ],
)
def test_a_node_refuses_what_is_not_for_it_now(
    server: Any, answer: Any, changes: dict[str, Any], sentence: str
) -> None:
    with pytest.raises(EnvelopeError, match=sentence):
        poll(server, answer, SIGNER.seal(task(**changes)))


def test_a_node_refuses_an_envelope_that_it_has_seen(server: Any, answer: Any) -> None:
    sealed = SIGNER.seal(task())
    with pytest.raises(EnvelopeError, match="seen before"):
        poll(server, answer, sealed, sealed)


def test_a_node_refuses_a_task_without_an_envelope(server: Any, answer: Any) -> None:
    with pytest.raises(EnvelopeError):
        poll(server, answer, json.loads(task()))


def test_control_that_answers_with_another_key_is_not_believed(server: Any, answer: Any) -> None:
    stranger = signing.EnvelopeSigner(b"\7" * 32)
    with pytest.raises(EnvelopeError):
        poll(server, answer, stranger.seal(task()), node=client(server.url))
