"""`rae-node history`: the last decisions, tasks and logins of this machine in words. Pure."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from datetime import datetime, timedelta
from typing import Any

from rae_node.guard.words import in_words, shown

_LONGEST = 2000  # characters of a line
_LATE = timedelta(seconds=10)
_ENDINGS = {
    "succeeded": "is done",
    "failed": "failed",
    "owner": "was given back",
    "paused": "was given back, for the machine is paused",
    "guard": "was given back, for a source could not see",
    "cancelled": "was cancelled by whoever submitted it",
    "deadline": "was stopped, for control was not reached in time",
    "shutdown": "was given back, for the agent stops",
}


def in_lines(entries: Iterable[dict[str, Any]]) -> Iterator[str]:
    """A line for each entry, and one for each day. Times are those of this machine's zone."""
    day = None
    for at, entry in _in_order(entries):
        words = sentence(entry)
        if not words:
            continue
        if at.date() != day:
            day = at.date()
            yield f"{at:%A, %d %B %Y}"
        yield f"  {at:%H:%M:%S}  {shown(words, _LONGEST)}"


def _in_order(entries: Iterable[dict[str, Any]]) -> list[tuple[datetime, dict[str, Any]]]:
    """A decision is written after the work that it stopped, with its own time.

    Not by the time alone: a clock that was set back would mix two hours.
    """
    found: list[tuple[datetime, dict[str, Any]]] = []
    for entry in entries:
        at = _when(entry)
        if at is None:
            continue
        place = len(found)
        while place and timedelta() < found[place - 1][0] - at < _LATE:
            place -= 1
        found.insert(place, (at, entry))
    return found


def sentence(entry: dict[str, Any]) -> str:
    """One entry in words; empty for what it does not know."""
    event, task = entry.get("event", "decision"), entry.get("task_id")
    if event == "task_begins":
        return f"task {task} ({entry.get('kind')}) begins on {entry.get('slot')}"
    if event == "task_ends":
        ending = str(entry.get("ending"))
        return f"task {task} {_ENDINGS.get(ending, f'ends: {ending}')}"
    if event in {"seat", "agent"}:
        return str(entry.get("text", ""))
    return _decision(entry) if event == "decision" else ""


def _decision(entry: dict[str, Any]) -> str:
    reasons = [str(code) for code in entry.get("reasons") or ()]
    if entry.get("safe"):
        if entry.get("may_poll"):
            return "free: this machine takes work"
        return f"takes no new work: {', '.join(map(in_words, reasons))}"
    causes = entry.get("problems") or map(in_words, reasons)
    words = f"no work: {'; '.join(map(str, causes))} [{', '.join(reasons)}]"
    count = entry.get("stopped") or 0
    if not count:
        return words
    tasks = "1 task was" if count == 1 else f"{count} tasks were"
    return f"{words}; {tasks} stopped within {entry.get('stopped_ms', 0):.0f} ms"


def _when(entry: dict[str, Any]) -> datetime | None:
    try:
        return datetime.fromisoformat(str(entry["ts"])).astimezone()
    except (LookupError, ValueError):
        return None
