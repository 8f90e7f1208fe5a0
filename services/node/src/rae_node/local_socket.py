"""The owner's door: one JSON line in, one out, over a unix socket; the peer's uid decides."""

from __future__ import annotations

import contextlib
import grp
import json
import os
import pwd
import socket
import struct
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rae_node import __version__
from rae_node.errors import NodeError
from rae_node.log import EventLog
from rae_node.paths import socket_path

if TYPE_CHECKING:
    from rae_node.agent import Agent

OWNER_GROUP = "rae-owner"
_MAX_LINE = 65536
_MAX_READ = 64 * _MAX_LINE
_PATIENCE_S = 10.0
_LONGEST_S = 10 * 366 * 86400
_ROUND_S = 8.0  # a round of the guard takes milliseconds; past this something is badly wrong

Verb = Callable[[dict[str, Any]], dict[str, Any]]


def may_resume(uid: int, own_uid: int, group: str = OWNER_GROUP) -> bool:
    """Whoever is logged in may pause; lending again is for root, the agent's user, the owners."""
    if uid in {0, own_uid}:
        return True
    try:
        user, owners = pwd.getpwuid(uid), grp.getgrnam(group)
        return owners.gr_gid in os.getgrouplist(user.pw_name, user.pw_gid)
    except (KeyError, OSError):
        return False


class LocalSocket:
    """Serves verbs; those in `guarded` need `may_resume`."""

    def __init__(
        self, path: Path, verbs: Mapping[str, Verb], guarded: frozenset[str], log: EventLog
    ) -> None:
        """Listen. Raises OSError."""
        self._path, self._verbs, self._guarded, self._log = path, verbs, guarded, log
        path.unlink(missing_ok=True)
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.bind(str(path))
        path.chmod(0o666)
        self._socket.listen(16)

    def start(self) -> None:
        """Begin to answer."""
        threading.Thread(target=self._serve, name="local-socket", daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # a close alone wakes nobody out of accept
        self._socket.close()
        self._path.unlink(missing_ok=True)

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except OSError:
                return
            threading.Thread(target=self._answer, args=(connection,), daemon=True).start()

    def _answer(self, connection: socket.socket) -> None:
        with connection, contextlib.suppress(OSError):
            connection.settimeout(_PATIENCE_S)
            raw = connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12)
            uid = struct.unpack("3i", raw)[1]
            try:
                answer = self._obey(_request(connection), uid)
            except NodeError as error:
                answer = {"rc": error.rc, "message": error.message}
            except Exception as error:  # one request's trouble is not the agent's
                self._log.error("local_request_failed", error=repr(error))
                answer = {"rc": "internal", "message": "The agent made a mistake; see its log."}
            connection.sendall(json.dumps(answer).encode() + b"\n")

    def _obey(self, line: bytes, uid: int) -> dict[str, Any]:
        try:
            request = json.loads(line)
            name = request["verb"]
            verb = self._verbs[name]
        except (ValueError, KeyError, TypeError, RecursionError) as error:
            raise NodeError(
                "invalid_request", "Unknown verb; send one of " + ", ".join(self._verbs)
            ) from error
        if name in self._guarded and not may_resume(uid, os.getuid()):
            raise NodeError(
                "forbidden",
                f"'{name}' is for root and group {OWNER_GROUP}; ask as one of them (pause is free)",
            )
        return verb(request)


def ask(path: Path, request: dict[str, Any], timeout_s: float = _PATIENCE_S) -> dict[str, Any]:
    """One request to the agent behind a socket.

    Raises NodeError: `not_running` when nobody answers, else what the agent says.
    """
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as connection:
            connection.settimeout(timeout_s)
            connection.connect(str(path))
            connection.sendall(json.dumps(request).encode() + b"\n")
            answer = json.loads(_read_line(connection))
    except (OSError, ValueError) as error:
        said = getattr(error, "strerror", None) or error
        raise NodeError(
            "not_running",
            f"No agent answers at {path} ({said}); start it with `systemctl start rae-node` where "
            "enable-node has lent the machine, a dev node with `rae-node run --dev`",
        ) from error
    if not isinstance(answer, dict):
        raise NodeError(
            "not_running", f"What answers at {path} is no agent; end it, then start one"
        )
    if "rc" in answer:
        raise NodeError(str(answer["rc"]), str(answer.get("message")))
    return answer


def _request(connection: socket.socket) -> bytes:
    try:
        return _read_line(connection)
    except (ValueError, TimeoutError) as error:
        text = f"Not this way: {error}; send one line of JSON with at most {_MAX_LINE} bytes"
        raise NodeError("invalid_request", text) from error


def _read_line(connection: socket.socket) -> bytes:
    """Raises ValueError for what is no line or too long, OSError."""
    data, total = b"", 0
    while b"\n" not in data:
        piece = connection.recv(4096)
        total += len(piece)
        if not piece or total > _MAX_READ:
            break
        # What is too long is read to its end all the same: its sender listens only then.
        data = data + piece if total <= _MAX_LINE else piece
    if total > _MAX_LINE:
        raise ValueError("this one is longer")
    if b"\n" not in data:
        raise ValueError("this one broke off" if total else "this one is empty")
    return data


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
    number = isinstance(duration_s, int | float) and not isinstance(duration_s, bool)
    if duration_s is not None and not (number and 0 < duration_s <= _LONGEST_S):
        raise NodeError(
            "invalid_request",
            f"duration_s is wrong; send a number above 0, at most {_LONGEST_S}, or none",
        )
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
            **run.task.model_dump(include={"task_id", "attempt", "kind"}),
            "phase": run.phase,
            "deadline_in_s": round(run.deadline - now, 1),
        }
        for run in agent.runs()
    }
    heard, obstacles = agent.link.last_answer, agent.obstacles()
    return {
        "node_id": outfit.config.node_id,
        "version": __version__,
        "pid": os.getpid(),
        "control": outfit.config.rae_endpoint,
        "session": agent.link.state,
        "control_heard_s_ago": None if heard is None else round(now - heard, 1),
        "availability": decision.availability.value,
        "taking_work": not obstacles,
        "no_task_because": obstacles,
        "reasons": agent.reasons(),
        "cooldown_left_s": round(agent.guard.cooldown_left_s(), 1),
        "paused_until": outfit.pause.until() if outfit.pause.read().present else None,
        "draining": agent.draining,
        "files": outfit.live.problem or "as they were read",
        "guard_sources": outfit.config.guard_sources,
        "isolation": outfit.isolation.level,
        "isolation_why": outfit.isolation.why,
        "min_isolation": outfit.config.min_isolation,
        "slots": {name: running.get(name) for name in agent.slots.names},
        "undelivered": len(agent.spool),
        "commands": outfit.allowed.offered(),
        "commands_not_installed": outfit.allowed.missing(),
        "models": agent.models or [],
    }
