"""How a task is kept apart. One interface; here a supervised child process, in a box or without."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

from rae_node import procs, supervision
from rae_node.box import Box, probe
from rae_node.errors import NodeError

Level = Literal["unit", "bubblewrap", "process"]
PROGRAM = Path(__file__).with_name("supervisor.py")
STRENGTH: dict[Level, int] = {"process": 0, "bubblewrap": 1, "unit": 2}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a task may use at most. Seconds, bytes, MiB; None means not watched."""

    timeout_s: float
    max_output_bytes: int
    memory_mb: float | None
    nice: int
    io_class: str
    io_level: int
    rlimits: dict[str, int]
    max_processes: int = 1024
    disk_bytes: int | None = None
    max_files: int = 100_000


@dataclass(frozen=True, slots=True)
class Spec:
    """Everything a supervisor needs; `deadline` on CLOCK_BOOTTIME.

    `trusted`: needs no box; `shown`, `devices`: what a box has besides the system.
    """

    lease_id: str
    argv: tuple[str, ...]
    env: dict[str, str]
    cwd: Path
    workspace: Path
    log_dir: Path
    deadline: float
    limits: Limits
    progress: bool = False
    trusted: bool = False
    shown: tuple[Path, ...] = ()
    devices: tuple[Path, ...] = ()


@dataclass(frozen=True, slots=True)
class Outcome:
    """How the task's main process ended, seen by its supervisor."""

    cause: str
    exit_code: int | None
    signal: int | None
    duration_s: float
    max_rss_mb: float
    problem: str | None = None


class Handle:
    """One started task, seen through its supervisor.

    `started`: its program may have run; `finished`: the outcome is known, or lost; `gone`: nothing
    of it lives.
    """

    def __init__(self, process: subprocess.Popen[bytes], ended: Callable[[int], None]) -> None:
        self.finished = threading.Event()
        self.gone = threading.Event()
        self.started = False
        self.outcome: Outcome | None = None
        self.progress: tuple[float, str] | None = None
        assert process.stdin is not None and process.stdout is not None  # noqa: S101 - both are pipes
        self._stdin, self._stdout = process.stdin, process.stdout
        self._process, self._ended = process, ended
        self._wiped = threading.Event()
        self._exited = threading.Event()
        self._problem: str | None = None
        self._lock = threading.Lock()
        name = f"supervisor-{process.pid}"
        self._reader = threading.Thread(target=self._listen, name=f"{name}-says", daemon=True)
        self._reader.start()
        threading.Thread(target=self._watch, name=name, daemon=True).start()

    def send(self, order: dict[str, Any]) -> None:
        """A line to the supervisor; one that is gone needs no orders."""
        line = json.dumps(order, default=str).encode() + b"\n"  # paths are text there
        with self._lock, contextlib.suppress(OSError, ValueError):
            self._stdin.write(line)
            self._stdin.flush()

    def extend(self, deadline: float) -> None:
        """Move the deadline (CLOCK_BOOTTIME), only ever later."""
        self.send({"deadline": deadline})

    def kill(self) -> None:
        """Ask for the end of everything; returns at once, `gone` tells."""
        self.send({"kill": "agent"})

    def kill_hard(self) -> None:
        """Kill everything from here, whatever the supervisor does; `gone` tells."""
        procs.kill_below(self._process.pid)
        self._exited.wait(5.0)

    def wipe(self, timeout_s: float) -> bool:
        """Have the workspace deleted and the supervisor end; whether it confirmed in time."""
        self.send({"wipe": True})
        self._exited.wait(timeout_s)
        return self._wiped.is_set()

    def _listen(self) -> None:
        for line in self._stdout:
            with contextlib.suppress(ValueError, KeyError, TypeError):
                self._take(json.loads(line))

    def _watch(self) -> None:
        self._process.wait()
        self._ended(self._process.pid)  # then nobody else holds the pipe that the reader reads
        self._reader.join()
        self.gone.set()
        self.finished.set()
        self._exited.set()
        with contextlib.suppress(OSError):
            self._stdout.close()
        with self._lock, contextlib.suppress(OSError):
            self._stdin.close()

    def _take(self, message: dict[str, Any]) -> None:
        if "started" in message:
            self.started = True
        elif "progress" in message:
            note = message["progress"]
            self.progress = (min(100.0, max(0.0, note["pct"])), note["note"])
        elif "problem" in message:
            self._problem = str(message["problem"])
        elif "cause" in message:
            self.outcome = Outcome(
                message["cause"],
                message["exit"],
                message["signal"],
                message["duration_s"],
                message["max_rss_mb"],
                self._problem,
            )
        elif "gone" in message:
            self.gone.set()
            self.finished.set()
        elif message.get("wiped"):
            self._wiped.set()


class Isolation(Protocol):
    """Starts tasks at one level of isolation; `why` it is no stronger one."""

    level: Level
    why: str

    def start(self, spec: Spec) -> Handle:
        """Start a supervisor with this task. Raises OSError."""
        ...


class ProcessIsolation:
    """The supervisor as the agent's child, the task in a box, or with rlimits alone."""

    level: Level = "process"

    def __init__(self, root: Path, box: Box | None = None, why: str = "") -> None:
        self.level, self.why = "bubblewrap" if box else "process", why
        self._root, self._box = root, box
        self._pids: set[int] = set()
        self._lock = threading.Lock()
        # What a dead supervisor leaves comes to us instead of to init, where nobody would kill it.
        ctypes.CDLL(None).prctl(supervision.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def start(self, spec: Spec) -> Handle:
        """Start a supervisor and hand it the spec. Raises OSError."""
        mark = {procs.ROOT_MARK: str(self._root), "RAE_LEASE": spec.lease_id}
        with self._lock:  # or the search for orphans could meet it before it is known
            process = subprocess.Popen(
                [sys.executable, "-ISE", str(PROGRAM)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                env=mark,
                start_new_session=True,
                cwd="/",
            )
            self._pids.add(process.pid)
        handle = Handle(process, self._forget)
        if self._box is None or spec.trusted:
            handle.send({**asdict(spec), "env": {**spec.env, **mark}, "box": None})
        else:  # a box dies with its supervisor: no mark is needed, which the task could read
            words = self._box.arguments(spec.workspace, spec.shown, spec.devices)
            box = {"argv": [self._box.program, *words], "seccomp": self._box.seccomp}
            handle.send({**asdict(spec), "cwd": "/", "box": box})
        return handle

    def _forget(self, pid: int) -> None:
        """A supervisor is gone; comes back when nothing that it left lives."""
        with self._lock:
            self._pids.discard(pid)
        pause = 0.001
        while True:
            with self._lock:
                strays = procs.orphans(self._pids)
            if not strays:
                return
            procs.reap(strays)
            time.sleep(pause)
            pause = min(pause * 2, 0.1)


def at_least(level: Level, minimum: Level) -> bool:
    """Whether a level of isolation reaches a minimum."""
    return STRENGTH[level] >= STRENGTH[minimum]


def strongest(root: Path, wanted: Level | Literal["auto"]) -> ProcessIsolation:
    """The best that works here, no better than wanted."""
    if wanted == "process":
        return ProcessIsolation(root, why="`isolation: process` in config.yaml")
    try:
        return ProcessIsolation(root, probe())
    except NodeError as error:
        return ProcessIsolation(root, why=error.message)


def rlimits(max_file_bytes: int, address_bytes: int) -> dict[str, int]:
    """The limits every task gets: no core, bounded files, descriptors and addresses."""
    return {
        # Not 0: a pattern that is a program would still be fed; at 1 the kernel feeds nobody
        # (fs/coredump.c), and less than a page makes no file.
        "RLIMIT_CORE": 1,
        "RLIMIT_AS": address_bytes,
        "RLIMIT_FSIZE": max_file_bytes,
        "RLIMIT_NOFILE": 1024,
        "RLIMIT_MEMLOCK": 64 * os.sysconf("SC_PAGE_SIZE"),
    }
