"""Who is calling: tokens with roles for RAE and operators, signed sessions for nodes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from rae_control.core.nonces import KEEP_S, NonceCache
from rae_control.ledger.base import Row
from rae_control.ledger.nodes import sha256
from rae_control.node_table import NodeEntry, NodeTable
from rae_protocol import signing
from rae_protocol.clock import Clock
from rae_protocol.errors import RaeError
from rae_protocol.names import MAX_REGISTER_BYTES

_SLOW_S = 4.0
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
class Session:
    """What the headers of a node's call show, before its body: the signature is yet unchecked.

    `node_id` is None where control knows no such session: who signed the call may be a node whose
    session is over, and is to get a signed refusal.
    """

    node_id: str | None
    token: str
    fields: signing.SignatureFields | None


@dataclass(frozen=True, slots=True)
class Applicant:
    """What the headers of a registration show: a signature to check, or a secret that is right."""

    node_id: str
    fields: signing.SignatureFields | None


@dataclass(frozen=True, slots=True)
class Signed:
    """What a signature covers: the request as it came over the wire.

    `proved` is called with the key and the nonce once the signature is found right: they sign the
    answer, whatever it is. Not for a nonce that came twice: what became of the first request is
    for its own answer to say.
    """

    method: str
    target: str
    body_sha256: str
    proved: Callable[[bytes, str], None] = lambda _key, _nonce: None


class Superseded(RaeError):
    """A session was used that another agent has replaced; `stamp`: when the call was signed."""

    def __init__(self, node_id: str, session: str, stamp: int | None) -> None:
        super().__init__("superseded", "another agent registered with this node_id")
        self.node_id, self.session, self.stamp = node_id, session, stamp


@dataclass(frozen=True, slots=True)
class Skew:
    """How far a stamp may be from control's clock, in seconds.

    Little ahead: for as long after its start control refuses what it cannot tell from a copy.
    """

    behind: float
    ahead: float


class Authenticator:
    """Checks every request. Holds no secret but the root keys (current first, then previous).

    `before` is how late it is, as far as the clock of an earlier process tells, which took requests
    that this one knows nothing of; None when there was none.
    """

    def __init__(
        self,
        roots: Sequence[bytes],
        nodes: NodeTable,
        tokens: Iterable[Row],
        clock: Clock,
        skew: Skew,
        before: float | None,
    ) -> None:
        self._roots = roots
        self._nodes = nodes
        self._clock = clock
        self._skew = skew
        self._started_boot = clock.boot()
        self._before = before
        self._nonces = NonceCache()
        self._tokens: dict[str, Caller] = {}
        for row in tokens:
            self.learn_token(row)
        # Enrolment secrets of bearer nodes, hashed: whose one is shows before a body is read.
        self._secrets: dict[str, str] = {}
        self._derived: dict[str, tuple[int, list[str]]] = {}
        for entry in nodes:
            self.learn_node(entry)
        self.signer = signing.EnvelopeSigner(roots[0])
        self.public_keys = [signing.EnvelopeSigner(root).public_key for root in roots]

    def learn_token(self, row: Row) -> None:
        """Take a token's row over after its commit."""
        if row["revoked_at"] is None:
            self._tokens[row["sha256"]] = Caller(row["name"], row["role"])
        else:
            self._tokens.pop(row["sha256"], None)

    def learn_node(self, entry: NodeEntry) -> None:
        """Take a node's enrolment over after its commit."""
        epoch, digests = self._derived.get(entry.node_id, (None, []))
        wanted = entry.epoch if entry.kind == "bearer" and not entry.revoked else None
        if wanted == epoch:
            return
        for digest in digests:
            self._secrets.pop(digest, None)
        self._derived.pop(entry.node_id, None)
        if wanted is not None:
            digests = [sha256(secret) for secret in self._enrolment(entry.node_id, wanted)]
            self._derived[entry.node_id] = (wanted, digests)
            self._secrets.update(dict.fromkeys(digests, entry.node_id))

    def whose(self, authorization: str) -> str | None:
        """Whose the bearer token is, or was until a newer agent came; the same however written."""
        try:
            token = _bearer(authorization)
        except RaeError:
            return None
        digest = sha256(token)
        if (caller := self._tokens.get(digest)) is not None:
            return f"role {caller.name}"
        holder = self._holder(token)
        node_id = self._secrets.get(digest) if holder is None else holder.node_id
        return None if node_id is None else f"node {node_id}"

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

    def session(self, authorization: str | None, signature: str | None, size: int) -> Session:
        """Whose session a call claims, by its headers alone; its body has so many bytes.

        Raises RaeError `unauthorized`, `register_again`, `superseded`, `forbidden`,
        `bad_signature`.
        """
        token = _bearer(authorization)
        entry = self._holder(token)
        if entry is None:
            if sha256(token) in self._tokens:
                raise RaeError("forbidden", "this is a call for nodes")
            # To sign the refusal takes the body: of who may be anybody, no more than of a
            # registration.
            if not signature or size > MAX_REGISTER_BYTES:
                raise _closed()
            return Session(None, token, signing.parse_signature(signature))
        if entry.kind != "hmac":
            self._check_open(entry, token)
            return Session(entry.node_id, token, None)
        if not signature:
            raise RaeError("bad_signature", "this node's calls need the RAE-Signature header")
        fields = signing.parse_signature(signature)
        if fields.keyid != entry.node_id:
            raise RaeError("bad_signature", "keyid is not the token's node")
        return Session(entry.node_id, token, fields)

    def node(self, session: Session, signed: Signed) -> NodeEntry:
        """The node whose session this is, now that its whole request is there.

        Raises RaeError as `session`, and `skew`, `replayed_nonce`, `retry_signed`.
        """
        # Looked up again: much may have happened while the body came.
        entry = self._holder(session.token)
        if entry is None or session.node_id is None:
            if session.fields is not None:
                self._prove_closed(session.token, session.fields, signed)
            raise _closed()
        if entry.kind == "hmac":
            self._check_session(entry, session, signed)
        self._check_open(entry, session.token, session.fields)
        return entry

    def applicant(self, authorization: str | None) -> Applicant:
        """Who asks to register, by the headers alone.

        Raises RaeError `unauthorized`, `not_enrolled`, `bad_signature`.
        """
        scheme, _, rest = (authorization or "").partition(" ")
        if scheme == signing.REGISTER_SCHEME:
            fields = signing.parse_signature(rest)
            return Applicant(fields.keyid, fields)
        node_id = self._secrets.get(sha256(_bearer(authorization)))
        if node_id is None:
            raise RaeError("not_enrolled", "auth_token invalid")
        return Applicant(node_id, None)

    def registering(self, applicant: Applicant, signed: Signed) -> NodeEntry:
        """The enrolled node that has proved its secret over the raw request.

        A node that is unknown, revoked or enrolled as a bearer is refused like one with a wrong
        secret, after the same work: strangers do not learn which nodes there are. Raises RaeError
        `not_enrolled`, `replayed_nonce`, `retry_signed`, `skew`.
        """
        node_id, fields = applicant.node_id, applicant.fields
        entry = self._nodes.get(node_id)
        if fields is not None:
            secrets = self._enrolment(node_id, 1 if entry is None else entry.epoch)
            try:
                self._check(fields, [secret.encode() for secret in secrets], signed)
            except RaeError as error:
                if error.rc != "bad_signature":
                    raise
                self._prove_closed(None, fields, signed)
                raise RaeError("not_enrolled") from _why(entry, "hmac")
        kind = "bearer" if fields is None else "hmac"
        if entry is None or entry.revoked or entry.kind != kind:
            raise RaeError("not_enrolled") from _why(entry, kind)
        return entry

    def secret(self, node_id: str, epoch: int) -> str:
        """The enrolment secret of a node, derived anew each time."""
        return signing.enrolment_secret(self._roots[0], node_id, epoch)

    def _holder(self, token: str) -> NodeEntry | None:
        """The node that has this session, or had it until a newer agent came."""
        digest = sha256(token)
        entry = self._nodes.by_token(digest)
        if entry is not None:
            return entry
        node_id = self._nodes.superseded(digest)
        return None if node_id is None else self._nodes.get(node_id)

    def _check_open(
        self, entry: NodeEntry, token: str, fields: signing.SignatureFields | None = None
    ) -> None:
        """Raises Superseded, RaeError `register_again`.

        For an hmac node after its signature: a token alone is for everybody to read who sees the
        traffic.
        """
        digest = sha256(token)
        if self._nodes.by_token(digest) is None:
            raise Superseded(entry.node_id, digest, None if fields is None else int(fields.ts))
        if entry.token_expires <= self._clock.wall():
            raise RaeError("register_again", "the node token has expired")

    def _enrolment(self, node_id: str, epoch: int) -> list[str]:
        return [signing.enrolment_secret(root, node_id, epoch) for root in self._roots]

    def _prove_closed(
        self, token: str | None, fields: signing.SignatureFields, signed: Signed
    ) -> None:
        """Who calls may be a node whose session, enrolment or epoch is over; token: its session.

        Its refusal is signed with the key that it has, or it could not tell who refuses.
        """
        entry = self._nodes.get(fields.keyid)
        # A revocation began a new epoch; a ledger without the node is an older one.
        epoch = 1 if entry is None else entry.epoch
        for secret in self._enrolment(fields.keyid, epoch) + self._enrolment(
            fields.keyid, epoch - 1
        ):
            key = secret.encode() if token is None else signing.session_key(secret, token)
            if _matches(fields, key, signed):
                signed.proved(key, fields.nonce)
                return

    def _check_session(self, entry: NodeEntry, session: Session, signed: Signed) -> None:
        fields, token = session.fields, session.token
        if fields is None:  # enrolled anew as hmac, while the body came
            raise RaeError("register_again", "the node's enrolment has changed")
        if token not in entry.session_keys:
            # Under which root the secret was handed out shows only in the signature.
            keys = [
                signing.session_key(secret, token)
                for secret in self._enrolment(entry.node_id, entry.epoch)
            ]
            entry.session_keys[token] = self._check(fields, keys, signed)
        else:
            self._check(fields, [entry.session_keys[token]], signed)

    def _check(
        self, fields: signing.SignatureFields, keys: Sequence[bytes], signed: Signed
    ) -> bytes:
        key = next((key for key in keys if _matches(fields, key, signed)), None)
        if key is None:
            raise RaeError("bad_signature")
        try:
            self._check_fresh(fields)
        except RaeError as error:
            if error.rc != "replayed_nonce":
                signed.proved(key, fields.nonce)
            raise
        signed.proved(key, fields.nonce)
        return key

    def _check_fresh(self, fields: signing.SignatureFields) -> None:
        """Raises RaeError `skew`, `retry_signed`, `replayed_nonce`."""
        now, stamp = self._clock.wall(), int(fields.ts)
        if not -self._skew.behind <= stamp - now <= self._skew.ahead:
            raise RaeError("skew", detail_s=round(stamp - now, 1))
        unknown = self._unknown_until(now)
        if stamp <= unknown:
            # Long enough for a clock that is a few seconds behind; one that is more follows ours.
            wait = math.ceil(min(int(unknown) + 1 - stamp, unknown + _SLOW_S - now))
            raise RaeError("retry_signed", retry_after_s=max(1, wait))
        if not self._nonces.knows(fields.keyid, stamp, now):
            raise RaeError("retry_signed", retry_after_s=1)
        if not self._nonces.add(fields.keyid, stamp, fields.nonce, now):
            raise RaeError("replayed_nonce")

    def _unknown_until(self, now: float) -> float:
        """The latest stamp that an earlier process may have taken; its nonces are not known."""
        if self._before is None:
            return float("-inf")
        # The start, on the clock as it is set now: nodes follow that one.
        started = now - (self._clock.boot() - self._started_boot)
        # A clock set back by more is followed all the same: no node could work for so long.
        before = self._before if self._before <= started + KEEP_S else started
        return max(started, before) + self._skew.ahead


def _matches(fields: signing.SignatureFields, key: bytes, signed: Signed) -> bool:
    return signing.signature_matches(fields, key, signed.method, signed.target, signed.body_sha256)


def _bearer(authorization: str | None) -> str:
    scheme, _, token = (authorization or "").partition(" ")
    if scheme.lower() != "bearer" or not token.strip():
        raise RaeError("unauthorized")
    return token.strip()


def _closed() -> RaeError:
    return RaeError("register_again", "the node token is unknown or was closed")


def _why(entry: NodeEntry | None, kind: str) -> RaeError:
    """For control's own log: what the caller is not to learn."""
    if entry is None:
        return RaeError("not_enrolled", "there is no such node")
    if entry.revoked:
        return RaeError("node_revoked", f"node {entry.node_id} was revoked")
    if entry.kind != kind:
        return RaeError("not_enrolled", f"node {entry.node_id} is enrolled as {entry.kind}")
    return RaeError("bad_signature", f"this is not the secret of {entry.node_id}")


def _role_for(need: str) -> str:
    return " or ".join(role for role, rights in ROLES.items() if need in rights)
