"""The state machine of a task, and what its history must add up to."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from typing import Any

_ENDED_EARLY = frozenset({"failed", "cancelled", "expired"})
_BACK = frozenset({"queued", "waiting"})
LEGAL: Mapping[str | None, frozenset[str]] = {
    None: _BACK,
    "waiting": _ENDED_EARLY | {"queued"},
    "queued": _ENDED_EARLY | {"leased"},
    "leased": _BACK | {"running", "failed", "cancelled"},
    "running": _BACK | {"succeeded", "failed", "cancelled"},
    # Only a requeue leads out of an end, and never out of a success.
    **dict.fromkeys(_ENDED_EARLY, frozenset({"waiting"})),
    "succeeded": frozenset(),
}


def chain_problems(state: str, steps: Iterable[Mapping[str, Any]]) -> Iterator[str]:
    """What is wrong with a task's transitions, oldest first, that should have led to `state`."""
    now: str | None = None
    for step in steps:
        old, new = step["from_state"], step["to_state"]
        if old != now:
            yield f"event {step['seq']} starts from {old}, and the one before led to {now}"
        if new not in LEGAL.get(old, ()):
            yield f"event {step['seq']} goes from {old} to {new}, which is no way"
        now = new
    if now != state:
        yield f"it is {state}, and its history ends as {now}"


def counters(attempts: Iterable[Mapping[str, Any]], after: int) -> tuple[int, int]:
    """(failures, interruptions) that the attempts after a number (the requeue's) make."""
    states = [a["state"] for a in attempts if a["attempt"] > after]
    return states.count("failed"), states.count("interrupted")
