"""What the owner's socket answers: status, why, history, pause, resume."""

from __future__ import annotations

import os
from typing import Any

from rae_node import __version__
from rae_node.agent.agent import Agent
from rae_node.config.layout import socket_path
from rae_node.errors import NodeError
from rae_node.owner.socket import LocalSocket, may_resume
from rae_node.owner.why import obstacles, why

_MOST_ENTRIES = 1000
_LONGEST_S = 10 * 366 * 86400
_LOOK_S = 3.0
_ROUND_S = 8.0  # a round of the guard takes milliseconds; past this something is badly wrong


def open_door(agent: Agent) -> LocalSocket:
    """The agent's socket, not yet started. Raises OSError."""
    verbs = {
        "status": lambda _, __: status(_looked(agent)),
        "why": lambda _, __: why(_looked(agent)),
        "history": lambda request, _: history(agent, request.get("count")),
        "pause": lambda request, uid: pause(agent, request.get("duration_s"), uid),
        "resume": lambda _, __: resume(agent),
    }
    context = agent.context
    # The look fails with the reason before the guard gives it up.
    patience_s = 0.8 * context.settings.source_timeout_sec
    path, guarded = socket_path(context.layout.root), frozenset({"resume"})
    return LocalSocket(path, verbs, guarded, context.log, patience_s)


def pause(agent: Agent, duration_s: Any, uid: int) -> dict[str, Any]:
    """Stop all work, for so many seconds or until `resume`; answers when nothing lives any more.

    Who may not resume only makes a pause longer. Raises NodeError.
    """
    number = isinstance(duration_s, int | float) and not isinstance(duration_s, bool)
    if duration_s is not None and not (number and 0 < duration_s <= _LONGEST_S):
        raise NodeError(
            "invalid_request",
            f"duration_s is wrong; send a number above 0, at most {_LONGEST_S}, or none",
        )
    since = agent.context.clock.boot()
    until = agent.context.pause.set(duration_s, only_longer=not may_resume(uid, os.getuid()))
    try:
        report = agent.guard.look_now(since, _ROUND_S)
    except TimeoutError as error:
        raise NodeError("too_slow", f"Paused, but {error}; see `rae-node status`") from error
    return {"stopped": report.count, "stopped_ms": round(report.ms, 1), "until": until}


def _looked(agent: Agent) -> Agent:
    """The guard's last look may be half a minute old: who asks means now."""
    agent.guard.look_if_older(1.0, _LOOK_S)
    return agent


def history(agent: Agent, count: Any) -> dict[str, Any]:
    """The newest entries of the journal, oldest first. Raises NodeError, OSError."""
    if isinstance(count, bool) or not isinstance(count, int) or not 0 < count <= _MOST_ENTRIES:
        raise NodeError(
            "invalid_request", f"count is wrong; send a whole number from 1 to {_MOST_ENTRIES}"
        )
    return {"entries": agent.context.journal.last(count)}


def resume(agent: Agent) -> dict[str, Any]:
    """End the pause; other reasons and the cooldown go on. Raises NodeError."""
    try:
        agent.context.pause.clear()
    except OSError as error:
        raise NodeError(
            "still_paused", f"{error.filename} cannot be removed ({error.strerror}); remove it"
        ) from error
    agent.guard.look_now(agent.context.clock.boot(), _ROUND_S)
    return {
        "availability": agent.guard.decision.availability.value,
        "reasons": agent.admission.reasons(),
        "cooldown_left_s": round(agent.guard.cooldown_left_s(), 1),
    }


def status(agent: Agent) -> dict[str, Any]:
    """Everything that the owner could want to know; no secret in it."""
    context, decision, now = agent.context, agent.guard.decision, agent.context.clock.boot()
    running = {
        run.slot: {
            **run.task.model_dump(include={"task_id", "attempt", "kind"}),
            "phase": run.phase,
            "deadline_in_s": round(run.deadline - now, 1),
        }
        for run in agent.runs()
    }
    answered, against = agent.link.last_answer, obstacles(agent)
    return {
        "node_id": context.config.node_id,
        "version": __version__,
        "pid": os.getpid(),
        "control": context.config.rae_endpoint,
        "session": agent.link.state,
        "session_problem": agent.link.problem,
        "control_heard_s_ago": None if answered is None else round(now - answered, 1),
        "availability": decision.availability.value,
        "taking_work": not against,
        "no_task_because": against,
        "reasons": agent.admission.reasons(),
        "cooldown_left_s": round(agent.guard.cooldown_left_s(), 1),
        "paused_until": context.pause.until(),
        "draining": agent.draining,
        "files": context.live.problem or context.allowed.problem or "as they were read",
        "guard_sources": context.config.guard_sources,
        "isolation": context.isolation.level,
        "isolation_why": context.isolation.why,
        "min_isolation": context.config.min_isolation,
        "slots": {name: running.get(name) for name in agent.slots.names},
        "undelivered": len(agent.spool),
        "commands": context.allowed.offered(),
        "commands_not_installed": context.allowed.missing(),
        "models": agent.models or [],
    }
