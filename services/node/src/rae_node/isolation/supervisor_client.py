"""A started task as the agent sees it: a line to its supervisor, which passes files, too."""

from __future__ import annotations

import contextlib
import itertools
import json
import os
import queue
import socket
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from rae_node.errors import TaskFailure

_OPEN_S = 10.0
_KERNEL_S = 2.0  # from a deadline until the supervisor's end is known here, at most
_PIECE = 1 << 16


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the task's main process ended, seen by its supervisor."""

    cause: str
    exit_code: int | None
    signal: int | None
    duration_s: float
    max_rss_mb: float
    problem: str | None = None


@dataclass(frozen=True, slots=True)
class Line:
    """The way to a supervisor, and past it.

    `settle(unit)` comes back when the supervisor is gone and nothing that it left lives; `kill_all
    (unit)` ends everything without it. `unit` is the supervisor's cgroup, as reported; "" if not.
    """

    socket: socket.socket
    settle: Callable[[str], None]
    kill_all: Callable[[str], None]


class Handle:
    """One started task, seen through its supervisor.

    `started`: its program may have run; `finished`: the outcome is known, or lost; `gone`: nothing
    of it lives.
    """

    def __init__(self, line: Line) -> None:
        self.finished = threading.Event()
        self.gone = threading.Event()
        self.started = False
        self.outcome: Outcome | None = None
        self.progress: tuple[float, str] | None = None
        self._line = line
        self._unit = ""
        self._wiped = threading.Event()
        self._exited = threading.Event()
        self.problem: str | None = None
        self._lock = threading.Lock()
        self._numbers = itertools.count()
        self._asked: dict[int, queue.Queue[dict[str, Any]]] = {}
        self._files: deque[int] = deque()
        self._deadlines: list[float] = []
        threading.Thread(target=self._listen, name="supervisor-says", daemon=True).start()

    def send(self, order: dict[str, Any]) -> None:
        """A line to the supervisor; one that is gone needs no orders."""
        text = json.dumps(order, default=str).encode() + b"\n"  # paths are text there
        with self._lock, contextlib.suppress(OSError):
            self._line.socket.sendall(text)

    def extend(self, deadline: float) -> None:
        """Move the deadline (CLOCK_BOOTTIME), only ever later."""
        self._deadlines.append(deadline)
        self.send({"deadline": deadline})

    def ended_at_deadline(self, now: float) -> bool:
        """Whether the supervisor, gone by `now`, ended as a deadline passed that was moved since.

        The kernel ends one that is stopped and cannot read the new deadline (deadline.py).
        """
        return any(0 <= now - deadline <= _KERNEL_S for deadline in self._deadlines[:-1])

    def kill(self) -> None:
        """Ask for the end of everything; returns at once, `gone` tells."""
        self.send({"kill": "agent"})

    def kill_hard(self) -> None:
        """Kill everything from here, whatever the supervisor does; `gone` tells."""
        self._line.kill_all(self._unit)
        self._exited.wait(5.0)

    def wipe(self, timeout_s: float) -> bool:
        """Have the workspace deleted and the supervisor end; whether it confirmed in time."""
        self.send({"wipe": True})
        self._exited.wait(timeout_s)
        return self._wiped.is_set()

    def open(self, folder: str, name: str) -> int | None:
        """A file below a folder of the workspace, opened by the supervisor; None: it is not there.

        The task may have closed its folders to everybody else. Raises TaskFailure E_ARTIFACT for
        what is no file, OSError for trouble with the disk or a supervisor that does not answer.
        """
        number, answer = next(self._numbers), queue.Queue[dict[str, Any]](1)
        self._asked[number] = answer
        try:
            self.send({"open": number, "folder": folder, "name": name})
            said = {} if self._exited.is_set() else answer.get(timeout=_OPEN_S)
        except queue.Empty:
            said = {}
        finally:
            del self._asked[number]
        if not said:
            raise TimeoutError("the supervisor does not answer")
        if said.get("errno"):
            raise OSError(int(said["errno"]), str(said["error"]))
        if "error" in said:
            raise TaskFailure("E_ARTIFACT", str(said["error"]))
        file = said.get("file")
        return None if file is None else int(file)

    def _listen(self) -> None:
        left = b""
        with contextlib.suppress(OSError):
            while True:
                data, files, _, _ = socket.recv_fds(self._line.socket, _PIECE, 16)
                if not data:
                    break
                self._files += files
                *lines, left = (left + data).split(b"\n")
                for line in lines:
                    with contextlib.suppress(ValueError, KeyError, TypeError):
                        self._take(json.loads(line))
        self._line.settle(self._unit)
        self.gone.set()
        self.finished.set()
        self._exited.set()
        for answer in list(self._asked.values()):
            with contextlib.suppress(queue.Full):  # it has one
                answer.put_nowait({})
        with self._lock:
            self._line.socket.close()
        while self._files:
            os.close(self._files.popleft())

    def _take(self, message: dict[str, Any]) -> None:
        if "started" in message:
            self.started = True
        elif "progress" in message:
            note = message["progress"]
            self.progress = (min(100.0, max(0.0, note["pct"])), note["note"])
        elif "opened" in message:
            self._opened(message)
        elif "unit" in message:
            self._unit = str(message["unit"])
        elif "problem" in message:
            self.problem = str(message["problem"])
        elif "cause" in message:
            self.outcome = Outcome(
                message["cause"],
                message["exit"],
                message["signal"],
                message["duration_s"],
                message["max_rss_mb"],
                self.problem,
            )
        elif "gone" in message:
            self.gone.set()
            self.finished.set()
        elif message.get("wiped"):
            self._wiped.set()

    def _opened(self, message: dict[str, Any]) -> None:
        if message.get("found"):
            message["file"] = self._files.popleft()
        answer = self._asked.get(message["opened"])
        if answer is not None:
            answer.put_nowait(message)
        elif "file" in message:  # who asked does not wait any more
            os.close(message["file"])
