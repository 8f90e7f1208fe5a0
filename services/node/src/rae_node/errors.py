"""Errors of the node: a stable `rc` and one sentence with the way out."""

from __future__ import annotations

from collections.abc import Iterable


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
    """The lease is not ours any more; nothing is told to anybody."""

    def __init__(self, message: str) -> None:
        super().__init__("dropped", message)


def listed(names: Iterable[str], limit: int = 20) -> str:
    """Names as they stand in a sentence: sorted, the first few, `none` for nothing."""
    known = sorted(names)
    more = f" and {len(known) - limit} more" if len(known) > limit else ""
    return (", ".join(known[:limit]) + more) or "none"
