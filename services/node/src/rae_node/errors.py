"""Errors of the node, and what an answer of control means for it. Pure."""

from __future__ import annotations

import errno
from enum import Enum

from rae_protocol.errors import RaeError, Unreachable
from rae_protocol.errors import first_problem as first_problem  # noqa: PLC0414 - said by many here
from rae_protocol.errors import listed as listed  # noqa: PLC0414 - as above


class NodeError(Exception):
    """Base of the package's errors; `rc` is stable, the text tells the way out."""

    def __init__(self, rc: str, message: str) -> None:
        super().__init__(message)
        self.rc = rc
        self.message = message


class ConfigError(NodeError):
    """A file or setting is wrong; the text names it and what is allowed."""

    def __init__(self, message: str) -> None:
        super().__init__("bad_config", message)


class TaskFailure(NodeError):
    """The task itself failed; `rc` is the code that its submitter sees (E_DENY, E_INPUT, …)."""


class HandBack(NodeError):
    """The node cannot do this task now; it goes back to control with `rc` as the reason."""


class Dropped(NodeError):
    """The lease is not ours any more; nothing is reported."""

    def __init__(self, message: str) -> None:
        super().__init__("dropped", message)


def is_node_trouble(error: BaseException) -> bool:
    """Whether it is the disk that failed: full, over its quota, broken, or read-only."""
    found = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}
    return isinstance(error, OSError) and error.errno in found


class Verdict(Enum):
    """What to do about a failed call."""

    RETRY = "control is away or busy"
    REGISTER = "the session is over"
    SUPERSEDED = "another agent took over"
    UNWELCOME = "the node is not enrolled"
    STALE = "the lease is over"
    REFUSED = "never repeat this"


_SESSION_OVER = frozenset(
    {"register_again", "unauthorized", "bad_signature", "replayed_nonce", "unknown_node"}
)


def verdict(error: RaeError) -> Verdict:
    """What an answer of control means."""
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
