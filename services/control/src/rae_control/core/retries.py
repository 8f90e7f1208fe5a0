"""What an ended attempt means for its task: again, later, or over. Three counters (DESIGN §4)."""

from __future__ import annotations

from dataclasses import dataclass

# These fail for the same reason each time, so a second try is a waste of somebody's desktop (C7).
NOT_RETRYABLE = frozenset({"E_DENY", "E_INVALID", "UI_SESSION_REQUIRED"})
# Two agents take turns as one node (core/takeovers.py): neither the task nor its owner did it.
SHARED_MACHINE = "machine_id_shared"
# A node took the task and did not say that it starts it.
NO_ACK = "no_ack"
# Neither a failure nor an interruption: the node lacked what the task needs.
NO_CHARGE = frozenset({"E_NOGPU", SHARED_MACHINE, NO_ACK})
# What these failures say is about the task, wherever it runs.
_OF_THE_TASK = NOT_RETRYABLE | NO_CHARGE | {"E_INPUT"}


def speaks_of_node(code: str) -> bool:
    """Whether a failure with this code may be the node's fault."""
    return code.startswith("E_") and code not in _OF_THE_TASK


@dataclass(frozen=True, slots=True)
class Limits:
    """The settings that decide; seconds."""

    backoff_s: float
    backoff_max_s: float
    pause_s: float
    pause_max_s: float
    max_interruptions: int


@dataclass(frozen=True, slots=True)
class Verdict:
    """`final` ends the task; else it waits `pause_s` (0: queued at once). `reason` for history."""

    final: bool
    pause_s: float
    reason: str


def after_failure(code: str, failures: int, max_attempts: int, limits: Limits) -> Verdict:
    """A failure of the task's own; `failures` counts this one."""
    if code in NOT_RETRYABLE:
        return Verdict(True, 0.0, code)
    if failures >= max_attempts:
        return Verdict(True, 0.0, code)
    pause = min(limits.backoff_max_s, limits.backoff_s * 2.0 ** min(failures - 1, 30))
    return Verdict(False, pause, code)


def after_interruption(reason: str, total: int, in_row: int, limits: Limits) -> Verdict:
    """Yielded, lost or expired: costs nothing, but from the third in a row the pause grows."""
    if total >= limits.max_interruptions and reason not in NO_CHARGE:
        return Verdict(True, 0.0, "too_many_interruptions")
    if in_row < 3:
        return Verdict(False, 0.0, reason)
    pause = min(limits.pause_max_s, limits.pause_s * 2.0 ** min(in_row - 3, 30))
    return Verdict(False, pause, reason)
