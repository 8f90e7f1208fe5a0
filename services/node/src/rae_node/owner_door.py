"""What the owner may ask and order over the local socket: status, pause, resume."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any

from rae_node import __version__
from rae_node.errors import NodeError
from rae_node.local_socket import LocalSocket
from rae_node.paths import socket_path

if TYPE_CHECKING:
    from rae_node.agent import Agent

_ROUND_S = 8.0  # a round of the guard takes milliseconds; past this something is badly wrong


def open_door(agent: Agent) -> LocalSocket:
    """The agent's socket, not yet started. Raises OSError."""
    verbs = {
        "status": lambda _: status(agent),
        "pause": lambda request: pause(agent, request.get("duration_s")),
        "resume": lambda _: resume(agent),
    }
    root = agent.outfit.layout.root
    return LocalSocket(socket_path(root), verbs, frozenset({"resume"}), agent.outfit.log)


def pause(agent: Agent, duration_s: Any) -> dict[str, Any]:
    """Stop all work, for so many seconds or until `resume`; answers when nothing lives any more.

    Raises NodeError.
    """
    if duration_s is not None and (
        isinstance(duration_s, bool) or not isinstance(duration_s, int | float) or duration_s <= 0
    ):
        raise NodeError("invalid_request", "duration_s is a number above 0, or absent")
    since = agent.outfit.clock.boot()
    until = agent.outfit.pause.set(duration_s)
    try:
        report = agent.guard.look_now(since, _ROUND_S)
    except TimeoutError as error:
        raise NodeError("too_slow", f"Paused, but {error}; see `rae-node status`") from error
    return {"stopped": report.count, "stopped_ms": round(report.ms, 1), "until": until}


def resume(agent: Agent) -> dict[str, Any]:
    """End the pause; other reasons and the cooldown go on."""
    agent.outfit.pause.clear()
    agent.guard.look_now(agent.outfit.clock.boot(), _ROUND_S)
    return {
        "availability": agent.guard.decision.availability.value,
        "reasons": agent.reasons(),
        "cooldown_left_s": round(agent.guard.cooldown_left_s(), 1),
    }


def status(agent: Agent) -> dict[str, Any]:
    """Everything that the owner could want to know; no secret in it."""
    outfit, decision, now = agent.outfit, agent.guard.decision, agent.outfit.clock.boot()
    running = {
        run.slot: {
            "task_id": run.task.task_id,
            "attempt": run.task.attempt,
            "kind": run.task.kind,
            "phase": run.phase,
            "deadline_in_s": round(run.deadline - now, 1),
        }
        for run in agent.runs()
    }
    heard = agent.link.last_answer
    return {
        "node_id": outfit.config.node_id,
        "version": __version__,
        "pid": os.getpid(),
        "control": outfit.config.rae_endpoint,
        "session": agent.link.state,
        "control_heard_s_ago": None if heard is None else round(now - heard, 1),
        "availability": decision.availability.value,
        "taking_work": agent.may_take(),
        "reasons": agent.reasons(),
        "cooldown_left_s": round(agent.guard.cooldown_left_s(), 1),
        "paused_until": outfit.pause.until() if outfit.pause.read().present else None,
        "draining": agent.draining,
        "isolation": outfit.isolation.level,
        "min_isolation": outfit.config.min_isolation,
        "slots": {name: running.get(name) for name in agent.slots.names},
        "undelivered": len(agent.spool),
        "commands": outfit.allowed.offered(),
        "commands_not_installed": outfit.allowed.missing(),
        "models": agent.models or [],
    }
