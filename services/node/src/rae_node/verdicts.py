"""What an answer of control means for the agent. Pure."""

from __future__ import annotations

from enum import Enum

from rae_protocol.errors import RaeError, Unreachable

_SESSION_OVER = frozenset(
    {"register_again", "unauthorized", "bad_signature", "replayed_nonce", "unknown_node"}
)


class Verdict(Enum):
    """What to do about a failed call."""

    RETRY = "retry"
    REGISTER = "register"
    SUPERSEDED = "superseded"
    UNWELCOME = "unwelcome"
    STALE = "stale"
    REFUSED = "refused"


def verdict(error: RaeError) -> Verdict:
    """RETRY: control is away or busy. REGISTER: the session is over. REFUSED: never repeat this."""
    if isinstance(error, Unreachable) or error.status >= 500 or error.status == 429:
        return Verdict.RETRY
    if error.rc in _SESSION_OVER:
        return Verdict.REGISTER
    if error.rc == "superseded":
        return Verdict.SUPERSEDED
    if error.rc in {"not_enrolled", "node_revoked"}:
        return Verdict.UNWELCOME
    if error.status == 409:
        return Verdict.STALE
    # Clocks (skew, retry_signed) and what is left of 401 get better by themselves.
    return Verdict.RETRY if error.status == 401 else Verdict.REFUSED
