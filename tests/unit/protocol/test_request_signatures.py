"""A request is believed only as it was signed."""

from __future__ import annotations

import hashlib
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rae_protocol import signing
from rae_protocol.errors import RaeError

KEY = b"enrolment-secret"
BODY = b'{"node_id":"n1"}'
DIGEST = hashlib.sha256(BODY).hexdigest()


def fields() -> signing.SignatureFields:
    return signing.signed_fields(KEY, "n1", "POST", "/nodes/heartbeat?x=1", 1_767_225_600.9, BODY)


def test_a_signature_survives_its_own_header_and_matches() -> None:
    made = fields()
    read = signing.parse_signature(made.header())
    assert read == made
    assert read.ts == "1767225600"
    assert signing.signature_matches(read, KEY, "POST", "/nodes/heartbeat?x=1", DIGEST)


@pytest.mark.parametrize(
    "changed",
    [
        {"key": b"another"},
        {"method": "GET"},
        {"target": "/nodes/heartbeat"},
        {"target": "/nodes/heartbeat?x=2"},
        {"body": hashlib.sha256(BODY + b" ").hexdigest()},
    ],
)
def test_whatever_changes_after_signing_the_signature_fails(changed: dict[str, Any]) -> None:
    call: dict[str, Any] = {
        "key": KEY,
        "method": "POST",
        "target": "/nodes/heartbeat?x=1",
        "body": DIGEST,
    }
    call |= changed
    assert not signing.signature_matches(
        fields(), call["key"], call["method"], call["target"], call["body"]
    )


@pytest.mark.parametrize("part", ["keyid", "ts", "nonce"])
def test_time_and_nonce_are_part_of_what_is_signed(part: str) -> None:
    made = fields()
    values = {"keyid": made.keyid, "ts": made.ts, "nonce": made.nonce, "sig": made.sig}
    values[part] = {"keyid": "n2", "ts": "1767225601", "nonce": "A" * 22}[part]
    other = signing.SignatureFields(**values)
    matches = signing.signature_matches(other, KEY, "POST", "/nodes/heartbeat?x=1", DIGEST)
    # keyid only chooses the key: control looks it up, and another node's key does not match.
    assert matches is (part == "keyid")


def test_every_signature_has_its_own_nonce() -> None:
    assert len({fields().nonce for _ in range(200)}) == 200


@pytest.mark.parametrize(
    "header",
    [
        "",
        "nonsense",
        'keyid="n1"',
        'keyid="n1", ts="1", nonce="AAAAAAAAAAAAAAAAAAAAAA"',
        'keyid="n1", ts="1", nonce="AAAAAAAAAAAAAAAAAAAAAA", sig="00", sig="11"',
        'keyid="n1", ts="1", nonce="AAAAAAAAAAAAAAAAAAAAAA", sig="00", more="x"',
        'keyid="n1", ts="-1", nonce="AAAAAAAAAAAAAAAAAAAAAA", sig="00"',
        'keyid="n1", ts="1.5", nonce="AAAAAAAAAAAAAAAAAAAAAA", sig="00"',
        'keyid="n1", ts="9999999999999", nonce="AAAAAAAAAAAAAAAAAAAAAA", sig="00"',
        'keyid="n1", ts="1", nonce="short", sig="00"',
        'keyid="n1\n", ts="1", nonce="AAAAAAAAAAAAAAAAAAAAAA", sig="00"',
    ],
)
def test_a_header_that_is_not_exactly_right_is_refused(header: str) -> None:
    with pytest.raises(RaeError) as caught:
        signing.parse_signature(header)
    assert caught.value.rc == "bad_signature"
    assert caught.value.status == 401


@given(st.text(max_size=300))
def test_no_header_makes_the_parser_fail_otherwise(header: str) -> None:
    try:
        signing.parse_signature(header)
    except RaeError as error:
        assert error.rc == "bad_signature"


def test_secrets_differ_by_node_epoch_and_root() -> None:
    root = bytes(32)
    made = {
        signing.enrolment_secret(root, "n1", 1),
        signing.enrolment_secret(root, "n1", 2),
        signing.enrolment_secret(root, "n2", 1),
        signing.enrolment_secret(bytes(31) + b"\1", "n1", 1),
    }
    assert len(made) == 4
    assert signing.enrolment_secret(root, "n1", 1) in made


def test_session_keys_differ_by_token() -> None:
    assert signing.session_key("s", "token-1") != signing.session_key("s", "token-2")
    assert len(signing.session_key("s", "token-1")) == 32
