"""Who said it: request signatures, derived secrets and signed task envelopes.

Requests carry an HMAC over method, path, time, nonce and body, and their answers one over that
nonce, status, time and body; tasks travel in an Ed25519 envelope
whose pre-authentication encoding is DSSE's (github.com/secure-systems-lab/dsse). Test vectors stand
in `docs/protocol.md` and are checked against this module.
"""

from __future__ import annotations

import base64
import binascii
import hashlib
import hmac
import json
import re
import secrets
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey, Ed25519PublicKey
from cryptography.hazmat.primitives.kdf.hkdf import HKDF

from rae_protocol.errors import EnvelopeError, RaeError

PAYLOAD_TYPE = "application/vnd.rae.task+json"
SIGNATURE_HEADER = "RAE-Signature"
ANSWER_HEADER = "RAE-Answer"
REGISTER_SCHEME = "RAE-HMAC"
_FIELD = re.compile(r'\s*([a-z]+)="?([A-Za-z0-9_.=-]*)"?\s*')


def b64url(data: bytes) -> str:
    """Base64url without padding."""
    return base64.urlsafe_b64encode(data).rstrip(b"=").decode()


def derive(root: bytes, purpose: str) -> bytes:
    """32 bytes out of a root key for one purpose (HKDF-SHA256, RFC 5869, no salt)."""
    return HKDF(algorithm=hashes.SHA256(), length=32, salt=None, info=purpose.encode()).derive(root)


def enrolment_secret(root: bytes, node_id: str, epoch: int) -> str:
    """The secret of one node: text, used as it stands as HMAC key or bearer token."""
    return b64url(derive(root, f"RAE1 enrolment\n{node_id}\n{epoch}"))


def session_key(secret: str, node_token: str) -> bytes:
    """The key that signs every call after registration."""
    message = f"RAE1 session\n{node_token}".encode()
    return hmac.new(secret.encode(), message, hashlib.sha256).digest()


def string_to_sign(method: str, target: str, ts: str, nonce: str, body_sha256: str) -> bytes:
    """What is signed; `target` is the path with the raw query, as in the request line."""
    return f"RAE1\n{method}\n{target}\n{ts}\n{nonce}\n{body_sha256}".encode()


def sign(key: bytes, method: str, target: str, ts: str, nonce: str, body_sha256: str) -> str:
    """The signature of a request, in hex."""
    message = string_to_sign(method, target, ts, nonce, body_sha256)
    return hmac.new(key, message, hashlib.sha256).hexdigest()


@dataclass(frozen=True, slots=True)
class SignatureFields:
    """The parts of a signature header."""

    keyid: str
    ts: str
    nonce: str
    sig: str

    def header(self) -> str:
        """The header's value (without a scheme)."""
        return f'keyid="{self.keyid}", ts="{self.ts}", nonce="{self.nonce}", sig="{self.sig}"'


def signed_fields(
    key: bytes, keyid: str, method: str, target: str, now: float, body: bytes
) -> SignatureFields:
    """Sign a request at a time (unix seconds) with a fresh 16-byte nonce."""
    ts, nonce = str(int(now)), b64url(secrets.token_bytes(16))
    digest = hashlib.sha256(body).hexdigest()
    return SignatureFields(keyid, ts, nonce, sign(key, method, target, ts, nonce, digest))


def parse_signature(value: str) -> SignatureFields:
    """Read a signature header's value.

    Raises RaeError `bad_signature` when a part is missing, doubled or malformed.
    """
    found = _parts(value)
    if found is None:
        raise RaeError("bad_signature", "the signature header cannot be read")
    if set(found) != {"keyid", "ts", "nonce", "sig"}:
        raise RaeError("bad_signature", "the signature header needs keyid, ts, nonce and sig")
    if not re.fullmatch(r"[0-9]{1,12}", found["ts"]):
        raise RaeError("bad_signature", "ts is not a whole number of unix seconds")
    if not re.fullmatch(r"[A-Za-z0-9_-]{22}(==)?", found["nonce"]):
        raise RaeError("bad_signature", "nonce is not 16 bytes in base64url")
    return SignatureFields(**found)


def signature_matches(
    fields: SignatureFields, key: bytes, method: str, target: str, body_sha256: str
) -> bool:
    """Compare in constant time."""
    wanted = sign(key, method, target, fields.ts, fields.nonce, body_sha256)
    return hmac.compare_digest(wanted, fields.sig)


@dataclass(frozen=True, slots=True)
class AnswerFields:
    """The parts of `RAE-Answer`: control's clock in unix seconds, and the HMAC in hex."""

    ts: str
    mac: str

    def header(self) -> str:
        """The header's value."""
        return f'ts="{self.ts}", mac="{self.mac}"'


@dataclass(frozen=True, slots=True)
class Answered:
    """What an answer's signature covers besides its time.

    The request's nonce and its Content-Type (as sent, empty where there was none: no signature of a
    request covers it), the status, and the body's SHA-256 in hex.
    """

    nonce: str
    content_type: str
    status: int
    body_sha256: str

    def mac(self, key: bytes, ts: str) -> str:
        """The HMAC in hex."""
        parts = ("RAE1 answer", self.nonce, self.content_type, self.status, ts, self.body_sha256)
        message = "\n".join(map(str, parts)).encode("utf-8", "surrogateescape")
        return hmac.new(key, message, hashlib.sha256).hexdigest()


def signed_answer(key: bytes, answered: Answered, now: float) -> AnswerFields:
    """Sign an answer at a time (unix seconds) with the key that signed the request."""
    ts = f"{now:.3f}"
    return AnswerFields(ts, answered.mac(key, ts))


def parse_answer(value: str) -> AnswerFields:
    """Read the value of `RAE-Answer`. Raises ValueError when a part is missing or malformed."""
    found = _parts(value)
    if found is None or set(found) != {"ts", "mac"}:
        raise ValueError("its RAE-Answer has not the parts ts and mac")
    if not re.fullmatch(r"[0-9]{1,12}(\.[0-9]{1,6})?", found["ts"]):
        raise ValueError("the ts of its RAE-Answer is no time in unix seconds")
    return AnswerFields(**found)


def answer_matches(fields: AnswerFields, key: bytes, answered: Answered) -> bool:
    """Compare in constant time."""
    return hmac.compare_digest(answered.mac(key, fields.ts), fields.mac)


def _parts(value: str) -> dict[str, str] | None:
    found: dict[str, str] = {}
    for part in value.split(","):
        match = _FIELD.fullmatch(part)
        if match is None or match[1] in found:
            return None
        found[match[1]] = match[2]
    return found


def pae(payload_type: str, payload: bytes) -> bytes:
    """DSSE's pre-authentication encoding."""
    kind = payload_type.encode()
    return b"DSSEv1 %d %b %d %b" % (len(kind), kind, len(payload), payload)


class EnvelopeSigner:
    """Signs tasks for control. The key is derived from the root key, so nothing else is stored."""

    def __init__(self, root: bytes) -> None:
        self._key = Ed25519PrivateKey.from_private_bytes(derive(root, "RAE1 envelope"))
        self.public_key = b64url(self._key.public_key().public_bytes_raw())
        self.keyid = hashlib.sha256(self._key.public_key().public_bytes_raw()).hexdigest()[:16]

    def seal(self, payload: bytes) -> dict[str, Any]:
        """The envelope around exactly these bytes."""
        return {
            "payloadType": PAYLOAD_TYPE,
            "payload": base64.b64encode(payload).decode(),
            "signatures": [
                {
                    "keyid": self.keyid,
                    "sig": base64.b64encode(self._key.sign(pae(PAYLOAD_TYPE, payload))).decode(),
                }
            ],
        }


def open_envelope(envelope: dict[str, Any], public_keys: Sequence[str]) -> dict[str, Any]:
    """Check an envelope against control's public keys and return its payload.

    Raises EnvelopeError. Who it is for, when it expires and whether it was seen before is for the
    caller to check (`NodeClient` does).
    """
    try:
        if envelope["payloadType"] != PAYLOAD_TYPE:
            raise EnvelopeError("the envelope holds something else than a task")
        payload = base64.b64decode(envelope["payload"], validate=True)
        given = [base64.b64decode(item["sig"], validate=True) for item in envelope["signatures"]]
    except (KeyError, TypeError, binascii.Error) as error:
        raise EnvelopeError("the task did not come in a readable envelope") from error
    message = pae(PAYLOAD_TYPE, payload)
    for text in public_keys:
        key = Ed25519PublicKey.from_public_bytes(base64.urlsafe_b64decode(text + "=="))
        for sig in given:
            try:
                key.verify(sig, message)
            except InvalidSignature:
                continue
            try:
                value = json.loads(payload)
            except ValueError as error:
                raise EnvelopeError("the envelope's payload is not JSON") from error
            if not isinstance(value, dict):
                raise EnvelopeError("the envelope's payload is not an object")
            return value
    raise EnvelopeError("no signature of control's keys is on the envelope")
