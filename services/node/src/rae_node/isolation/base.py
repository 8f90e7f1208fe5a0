"""How a task is kept apart. One interface; here a supervised child process, in a box or without."""

from __future__ import annotations

import contextlib
import ctypes
import os
import socket
import subprocess
import sys
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal, Protocol

from rae_node.host import processes
from rae_node.isolation.bubblewrap import Box
from rae_node.isolation.supervisor_client import Handle, Line
from rae_node.supervisor import process_tree
from rae_node.supervisor import supervisor as supervision

Level = Literal["unit", "bubblewrap", "process"]
PROGRAM = Path(process_tree.__file__).with_name("entry.py")
STRENGTH: dict[Level, int] = {"process": 0, "bubblewrap": 1, "unit": 2}


@dataclass(frozen=True, slots=True)
class Limits:
    """What a task may use at most, or must leave. Seconds, bytes, MiB; None: not watched."""

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
    spare_memory_mb: float = 0.0
    spare_disk_mb: float = 0.0


@dataclass(frozen=True, slots=True)
class Spec:
    """Everything a supervisor needs; `deadline` on CLOCK_BOOTTIME.

    `trusted`: needs no box; `shown`, `devices`: what a box has besides the system; `identity`: of
    argv[0], as trust.py has it, when it was checked.
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
    identity: tuple[int, ...] | None = None


class Isolation(Protocol):
    """Starts tasks at one level of isolation; `why` it is no stronger one."""

    level: Level
    why: str

    def start(self, spec: Spec) -> Handle:
        """Start a supervisor with this task. Raises OSError."""
        ...

    def wipe(self, folder: Path) -> None:
        """Delete a workspace, whoever owns what is in it. Raises OSError."""
        ...

    def end_all(self, bound_s: float) -> int:
        """End what an earlier agent left; how much there was. Raises TimeoutError."""
        ...


class ProcessIsolation:
    """The supervisor as the agent's child, the task in a box, or with rlimits alone."""

    level: Level = "process"

    def __init__(self, root: Path, box: Box | None = None, why: str = "") -> None:
        self.level, self.why = "bubblewrap" if box else "process", why
        self._root, self._box = root, box
        self._pids: set[int] = set()
        self._lock = threading.Lock()
        # What a dead supervisor leaves comes to us instead of to init, where it would run on.
        ctypes.CDLL(None).prctl(supervision.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)

    def start(self, spec: Spec) -> Handle:
        """Start a supervisor and hand it the spec. Raises OSError."""
        mark = {processes.ROOT_MARK: str(self._root), "RAE_LEASE": spec.lease_id}
        ours, theirs = socket.socketpair()
        with theirs, self._lock:  # or the search for orphans could meet it before it is known
            process = subprocess.Popen(
                [sys.executable, "-ISE", str(PROGRAM)],
                stdin=theirs.fileno(),
                stdout=theirs.fileno(),
                env=mark,
                start_new_session=True,
                cwd="/",
            )
            self._pids.add(process.pid)
        watch = threading.Thread(target=self._forget, args=(process, ours), daemon=True)
        watch.start()
        handle = Handle(
            Line(ours, lambda _: watch.join(), lambda _: processes.kill_below(process.pid))
        )
        if self._box is None or spec.trusted:
            handle.send({**asdict(spec), "env": {**spec.env, **mark}, "box": None})
        else:  # a box dies with its supervisor: no mark is needed, which the task could read
            box = self._box.order(spec.workspace, spec.shown, spec.devices)
            handle.send({**asdict(spec), "cwd": "/", "box": box})
        return handle

    def wipe(self, folder: Path) -> None:
        """Delete a workspace; all of it is this user's. Raises OSError."""
        process_tree.wipe(str(folder))

    def end_all(self, bound_s: float) -> int:
        """Kill every process of an earlier agent with this root. Raises TimeoutError."""
        return processes.kill_predecessors(self._root, bound_s)

    def _forget(self, process: subprocess.Popen[bytes], line: socket.socket) -> None:
        """Wait for a supervisor's end; comes back when nothing that it left lives."""
        process.wait()
        with self._lock:
            self._pids.discard(process.pid)
        pause = 0.001
        while True:
            with self._lock:
                strays = processes.orphans(self._pids)
            if not strays:
                break
            processes.reap(strays)
            time.sleep(pause)
            pause = min(pause * 2, 0.1)
        with contextlib.suppress(OSError):  # whoever holds its end: the line is over
            line.shutdown(socket.SHUT_RDWR)


def at_least(level: Level, minimum: Level) -> bool:
    """Whether a level of isolation reaches a minimum."""
    return STRENGTH[level] >= STRENGTH[minimum]


def rlimits(max_file_bytes: int, address_bytes: int) -> dict[str, int]:
    """The limits every task gets: no core, bounded files, descriptors and addresses."""
    return {
        # Not 0: a pattern that is a program would still get the dump; at 1 the kernel starts none
        # (fs/coredump.c), and less than a page makes no file.
        "RLIMIT_CORE": 1,
        "RLIMIT_AS": address_bytes,
        "RLIMIT_FSIZE": max_file_bytes,
        "RLIMIT_NOFILE": 1024,
        # A timer takes one of its user's queued signals: some are left for supervisors' deadlines.
        "RLIMIT_SIGPENDING": 1024,
        "RLIMIT_MEMLOCK": 64 * os.sysconf("SC_PAGE_SIZE"),
    }
