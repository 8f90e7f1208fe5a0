"""How the supervisor starts a task: its limits, and bubblewrap. Standard library only."""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import select
import signal
import time
from typing import Any

IOPRIO_SET = {"x86_64": 251, "aarch64": 30}
IO_CLASSES = {"realtime": 1, "best-effort": 2, "idle": 3}
_libc = ctypes.CDLL(None, use_errno=True)


def restrict(limits: dict[str, Any]) -> None:
    """What every task's process gives up before it begins. Raises OSError, ValueError."""
    for name, value in limits["rlimits"].items():
        which = getattr(resource, name)
        hard = resource.getrlimit(which)[1]
        top = value if hard == resource.RLIM_INFINITY else min(value, hard)
        resource.setrlimit(which, (top, top))
    os.nice(int(limits["nice"]))
    number = IOPRIO_SET.get(os.uname().machine)
    if number is not None:
        level = IO_CLASSES[limits["io_class"]] << 13 | int(limits["io_level"])
        _libc.syscall(number, 1, 0, level)


def bound_processes(most: int) -> None:
    """Without a box the limit counts all that this user runs: so many more than run now.

    Raises OSError, ValueError.
    """
    with open("/proc/loadavg", encoding="ascii") as line:  # noqa: PTH123 - pathlib is slow to import
        running = int(line.read().split()[3].partition("/")[2])
    top = running + most
    hard = resource.getrlimit(resource.RLIMIT_NPROC)[1]
    top = top if hard == resource.RLIM_INFINITY else min(top, hard)
    resource.setrlimit(resource.RLIMIT_NPROC, (top, top))


class Box:
    """One box, from the pipes that its making needs to the end of all that is in it."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self._argv: list[str] = spec["argv"]
        self._rules = os.memfd_create("seccomp", os.MFD_CLOEXEC)
        os.write(self._rules, bytes.fromhex(spec["seccomp"]))
        os.lseek(self._rules, 0, os.SEEK_SET)
        self._words = os.memfd_create("bwrap", os.MFD_CLOEXEC)
        self._told, self._tell = os.pipe2(os.O_CLOEXEC)
        self._hold, self._free = os.pipe2(os.O_CLOEXEC)
        self.first: int | None = None
        self._handle = -1

    def command(self, argv: list[str]) -> list[str]:
        """The child's side: what to execute instead of argv, with all that it inherits.

        The options go through a descriptor: in the box, anybody can read its first process's argv.
        """
        inherited = {
            "--seccomp": self._rules, "--json-status-fd": self._tell, "--block-fd": self._hold,
        }  # fmt: skip
        words = self._argv[1:]
        for option, number in inherited.items():
            os.set_inheritable(number, True)
            words += [option, str(number)]
        os.write(self._words, b"\0".join(map(os.fsencode, words)))
        os.lseek(self._words, 0, os.SEEK_SET)
        os.set_inheritable(self._words, True)
        return [self._argv[0], "--args", str(self._words), "--", *argv]

    def wait(self, limit_s: float) -> str:
        """Until the box stands and waits for its program; what is wrong, or nothing."""
        for end in (self._tell, self._hold, self._rules, self._words):
            os.close(end)
        said, limit = b"", time.monotonic() + limit_s
        while b"}" not in said:
            if not select.select([self._told], [], [], max(0.0, limit - time.monotonic()))[0]:
                return "it did not answer in time; "
            piece = os.read(self._told, 4096)
            if not piece:
                return "it ended; "
            said += piece
        self.first = int(json.loads(said)["child-pid"])
        self._handle = os.pidfd_open(self.first)  # it waits for us: the number is still its own
        return ""

    def release(self, processes: int) -> None:
        """Let the program begin. Its limit of processes counts inside the box alone."""
        if self.first is not None:
            # Set from here: bubblewrap itself would trip over what else this user runs.
            resource.prlimit(self.first, resource.RLIMIT_NPROC, (processes, processes))
        os.write(self._free, b"1")
        os.close(self._free)

    def ran(self) -> bool:
        """Whether its program was started. Call it when all of the box has ended.

        bubblewrap says with which code a program ended, and nothing of one that it could not start.
        """
        os.set_blocking(self._told, False)
        said = b""
        with contextlib.suppress(BlockingIOError):
            while piece := os.read(self._told, 4096):
                said += piece
        return b"exit-code" in said

    def kill(self) -> bool:
        """SIGKILL to its first process: the kernel ends all others with it, pid_namespaces(7).

        False when there is none to be killed.
        """
        try:
            signal.pidfd_send_signal(self._handle, signal.SIGKILL)
        except OSError:
            return False
        return True
