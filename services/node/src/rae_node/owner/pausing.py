"""`rae-node pause` and `resume`: by the agent, or without one by the files that guards read."""

from __future__ import annotations

import math
import os
from datetime import datetime
from typing import Any

from rae_node.config.layout import Layout, socket_path
from rae_node.errors import NodeError
from rae_node.guard.sources.pause import PauseSource
from rae_node.guard.words import in_words
from rae_node.owner.socket import OWNER_GROUP, ask
from rae_node.owner.why import lasting
from rae_protocol.clock import SystemClock
from rae_protocol.terminal import complain


def pause(layout: Layout, duration_s: float | None) -> tuple[dict[str, Any], str]:
    """Pause now, until `resume` or for so long; the answer, and in words. Raises NodeError."""
    try:
        request = {"verb": "pause", "duration_s": duration_s}
        answer = ask(socket_path(layout.root), request)
    except NodeError as error:
        if error.rc != "not_running":
            raise
        answer = _by_file(layout, duration_s, error)
    end = answer["until"]
    moment = datetime.fromtimestamp(end) if end else None
    until = f"until {moment:%a %d %b %H:%M:%S}" if moment else "until `rae-node resume`"
    if duration_s is not None:  # `30` are seconds, which may not be what was meant
        until = f"for {_span(duration_s)}, {until}"
    count = answer["stopped"]
    done = f"; {count} {'task was' if count == 1 else 'tasks were'} stopped" if count else ""
    return answer, f"Paused {until}{done}."


def shown(layout: Layout) -> tuple[dict[str, Any], str]:
    """What the files say, by the clocks of this machine; no agent is needed. Raises NodeError."""
    file = layout.run / "pause.json"
    if file.exists() and not os.access(file, os.R_OK):
        text = f"{file} is not yours to read; run it as root, or ask the agent: `rae-node status`"
        raise NodeError("no_rights", text)
    left = _source(layout).left_s()
    ends = math.isfinite(left)
    until = f"for another {lasting(left)}" if ends else "until `rae-node resume`"
    found = {"paused": left > 0, "left_s": left if ends else None}
    return found, f"paused {until}" if left > 0 else "not paused"


def resume(layout: Layout) -> str:
    """End the pause; what comes of it, in words. Raises NodeError.

    A pause outlives the agent; without one, whoever may delete the file ends it.
    """
    try:
        answer = ask(socket_path(layout.root), {"verb": "resume"})
    except NodeError as error:
        source = _source(layout)
        if error.rc != "not_running" or not source.is_set():
            raise
        source.clear()
        return "Resumed: the pause is over. No agent runs."
    why = "; ".join(map(in_words, answer["reasons"]))
    return f"Resumed. Still no work: {why}." if why else "Resumed."


def _source(layout: Layout) -> PauseSource:
    return PauseSource(layout.run / "pause.json", SystemClock(), layout.pause_file)


def _span(seconds: float) -> str:
    """A duration in the largest unit that it is a whole number of."""
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds % size == 0:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:g} s"


def _by_file(layout: Layout, duration_s: float | None, error: NodeError) -> dict[str, Any]:
    """The agent does not answer; its guard looks at this file, too. Raises NodeError."""
    file = layout.pause_file
    try:
        until = PauseSource(file, SystemClock()).set(duration_s)
    except FileNotFoundError:
        raise error from None  # no node has its folders here
    except OSError as problem:
        raise NodeError(
            error.rc,
            f"{error.message}. {file} pauses as well, and cannot be written "
            f"({problem.strerror}): as root or in group {OWNER_GROUP}, type `touch {file}`",
        ) from error
    complain("rae-node", f"{error.message}. Written instead: {file}")
    return {"stopped": 0, "stopped_ms": 0.0, "until": until, "file": str(file)}
