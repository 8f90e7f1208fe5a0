"""Who is calling: tokens with roles for RAE and operators, signed sessions for nodes."""

from __future__ import annotations

import hmac
from collections import OrderedDict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from rae_control.ledger.nodes import sha256
from rae_control.ledger.store import Row
from rae_control.nodes import NodeEntry, NodeTable
from rae_protocol import signing
from rae_protocol.clock import Clock
from rae_protocol.errors import RaeError

ROLES = {"submit": {"submit", "read_own"}, "read": {"read", "read_own"}}
ROLES["admin"] = {"submit", "read", "read_own", "admin"}


@dataclass(frozen=True, slots=True)
class Caller:
    """RAE or an operator. `sees` limits reading to a submitter; None sees everything."""

    name: str
    role: str

    @property
    def sees(self) -> str | None:
        """Whose tasks this caller may look at."""
        return None if "read" in ROLES[self.role] else self.name


@dataclass(frozen=True, slots=True)
class Signed:
    """What a signature covers: the request as it came over the wire."""

    method: str
    target: str
    body_sha256: str


class NonceCache:
    """Nonces of the last two skew windows, per key id."""

    def __init__(self, keep_s: float) -> None:
        self._keep = keep_s
        self._seen: OrderedDict[tuple[str, str], float] = OrderedDict()

    def add(self, keyid: str, nonce: str, now: float) -> bool:
        """Remember a nonce; False when it was there already."""
        while self._seen and next(iter(self._seen.values())) < now - self._keep:
            self._seen.popitem(last=False)
        if (keyid, nonce) in self._seen:
            return False
        self._seen[keyid, nonce] = now
        return True


class Authenticator:
    """Checks every request. Holds no secret but the root keys (current first, then previous)."""

    def __init__(
        self,
        roots: Sequence[bytes],
        nodes: NodeTable,
        tokens: Iterable[Row],
        clock: Clock,
        skew_s: float,
    ) -> None:
        self._roots = roots
        self._nodes = nodes
        self._clock = clock
        self._skew = skew_s
        self._started = clock.wall()
        self._started_boot = clock.boot()
        self._nonces = NonceCache(2 * skew_s)
        self._tokens: dict[str, Caller] = {}
        for row in tokens:
            self.learn_token(row)
        self.signer = signing.EnvelopeSigner(roots[0])
        self.public_keys = [signing.EnvelopeSigner(root).public_key for root in roots]

    def learn_token(self, row: Row) -> None:
        """Take a token's row over after its commit."""
        if row["revoked_at"] is None:
            self._tokens[row["sha256"]] = Caller(row["name"], row["role"])
        else:
            self._tokens.pop(row["sha256"], None)

    def caller(self, authorization: str | None, need: str) -> Caller:
        """Who holds the bearer token, if its role allows `need`.

        Raises RaeError `unauthorized`, `forbidden`.
        """
        digest = sha256(_bearer(authorization))
        caller = self._tokens.get(digest)
        if caller is None:
            if self._nodes.by_token(digest) is not None:
                raise RaeError("forbidden", "a node's token cannot do this", needs=need)
            raise RaeError("unauthorized", "auth_token invalid")
        if need not in ROLES[caller.role]:
            raise RaeError("forbidden", f"this needs the role {_role_for(need)}", needs=need)
        return caller

    def node(self, authorization: str | None, signature: str | None, signed: Signed) -> NodeEntry:
        """The node whose session this is.

        Raises RaeError `unauthorized`, `register_again`, `superseded`, `forbidden`,
        `bad_signature`, `skew`, `replayed_nonce`, `retry_signed`.
        """
        token = _bearer(authorization)
        digest = sha256(token)
        entry = self._nodes.by_token(digest)
        if entry is None:
            if digest in self._tokens:
                raise RaeError("forbidden", "this is a call for nodes")
            if self._nodes.superseded(digest):
                raise RaeError("superseded", "another agent registered with this node_id")
            raise RaeError("register_again", "the node token is unknown or was closed")
        if entry.kind == "hmac":
            self._check_session(entry, token, signature, signed)
        if entry.token_expires <= self._clock.wall():
            raise RaeError("register_again", "the node token has expired")
        return entry

    def registering(self, node_id: str, authorization: str | None, signed: Signed) -> NodeEntry:
        """An enrolled node that proves its enrolment secret.

        Raises RaeError `not_enrolled`, `node_revoked`, `unauthorized` and those of signatures.
        """
        entry = self._nodes.get(node_id)
        if entry is None:
            raise RaeError("not_enrolled", f"node {node_id} is not enrolled")
        if entry.revoked:
            raise RaeError("node_revoked", f"node {node_id} was revoked")
        secrets = [signing.enrolment_secret(root, node_id, entry.epoch) for root in self._roots]
        scheme, _, rest = (authorization or "").partition(" ")
        if scheme == signing.REGISTER_SCHEME and entry.kind == "hmac":
            fields = signing.parse_signature(rest)
            if fields.keyid != node_id:
                raise RaeError("bad_signature", "keyid is not the node that registers")
            self._check(fields, [secret.encode() for secret in secrets], signed)
            return entry
        if scheme == "Bearer" and entry.kind == "bearer":
            if any(hmac.compare_digest(rest.strip().encode(), s.encode()) for s in secrets):
                return entry
            raise RaeError("unauthorized", "auth_token invalid")
        wanted = "RAE-HMAC signature" if entry.kind == "hmac" else "bearer token"
        raise RaeError("unauthorized", f"node {node_id} is enrolled to register with a {wanted}")

    def secret(self, node_id: str, epoch: int) -> str:
        """The enrolment secret of a node, derived anew each time."""
        return signing.enrolment_secret(self._roots[0], node_id, epoch)

    def _check_session(
        self, entry: NodeEntry, token: str, signature: str | None, signed: Signed
    ) -> None:
        if not signature:
            raise RaeError("bad_signature", "this node's calls need the RAE-Signature header")
        fields = signing.parse_signature(signature)
        if fields.keyid != entry.node_id:
            raise RaeError("bad_signature", "keyid is not the token's node")
        if token not in entry.session_keys:
            # Under which root the secret was handed out shows only in the signature.
            keys = [
                signing.session_key(
                    signing.enrolment_secret(root, entry.node_id, entry.epoch), token
                )
                for root in self._roots
            ]
            entry.session_keys[token] = self._check(fields, keys, signed)
        else:
            self._check(fields, [entry.session_keys[token]], signed)

    def _check(
        self, fields: signing.SignatureFields, keys: Sequence[bytes], signed: Signed
    ) -> bytes:
        for key in keys:
            if signing.signature_matches(
                fields, key, signed.method, signed.target, signed.body_sha256
            ):
                break
        else:
            raise RaeError("bad_signature")
        now, stamp = self._clock.wall(), float(fields.ts)
        if abs(now - stamp) > self._skew:
            raise RaeError("skew", detail_s=round(stamp - now, 1))
        # Where the clock was ahead at the start and was set right since, the start is when the
        # right one says; or nodes would be refused until it comes to the wrong time again.
        started = min(self._started, now - (self._clock.boot() - self._started_boot))
        if stamp <= int(started):
            # Nonces used before the start are not known any more.
            raise RaeError("retry_signed", retry_after_s=1)
        if not self._nonces.add(fields.keyid, fields.nonce, now):
            raise RaeError("replayed_nonce")
        return key


def _bearer(authorization: str | None) -> str:
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise RaeError("unauthorized")
    return token.strip()


def _role_for(need: str) -> str:
    return " or ".join(role for role, rights in ROLES.items() if need in rights)
