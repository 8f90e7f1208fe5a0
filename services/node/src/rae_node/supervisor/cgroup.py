"""The cgroup that systemd delegates to a task's unit, as the supervisor uses it. Standard library
only, and without pathlib, which would cost the supervisor a third of its start-up time.
"""

# ruff: noqa: PTH102, PTH123
from __future__ import annotations

import os

ROOT = "/sys/fs/cgroup"


def own() -> str:
    """The cgroup of this process in the v2 tree, as /proc tells it; "" when it tells none."""
    with open("/proc/self/cgroup", encoding="ascii") as lines:
        return next((line[3:].strip() for line in lines if line.startswith("0::")), "")


class Cgroup:
    """Two leaves below the unit's cgroup: one for the supervisor, one for the task."""

    def __init__(self, memory_mb: float | None, processes: int, base: str | None = None) -> None:
        """Make them and move this process. Raises OSError."""
        base = ROOT + own() if base is None else base
        self._task = f"{base}/task"
        for leaf in ("supervisor", "task"):
            os.mkdir(f"{base}/{leaf}")
        # First: a cgroup that passes controllers on may hold no process itself, cgroups(7).
        self._write(f"{base}/supervisor/cgroup.procs", "0")
        there = self._read(f"{base}/cgroup.controllers").split()
        limits = {"pids": [("pids.max", str(processes))]}
        if memory_mb is not None:
            size = str(int(memory_mb * 1048576))
            limits["memory"] = [
                ("memory.max", size), ("memory.swap.max", "0"), ("memory.oom.group", "1"),
            ]  # fmt: skip
        for name, values in limits.items():
            if name in there:
                self._write(f"{base}/cgroup.subtree_control", f"+{name}")
                for file, value in values:
                    if os.access(f"{self._task}/{file}", os.W_OK):  # swap may be off
                        self._write(f"{self._task}/{file}", value)
        self.counts_memory = "memory" in there and memory_mb is not None

    def enter(self) -> None:
        """Move this process to the task's leaf. Raises OSError."""
        self._write(f"{self._task}/cgroup.procs", "0")

    def kill(self) -> bool:
        """SIGKILL to all in the task's leaf; False where the kernel cannot (before 5.14)."""
        try:
            self._write(f"{self._task}/cgroup.kill", "1")
        except OSError:
            return False
        return True

    def oom_kills(self) -> int:
        """How often the kernel killed in it for memory."""
        words = self._read(f"{self._task}/memory.events").split()
        return int(words[words.index("oom_kill") + 1]) if "oom_kill" in words else 0

    @staticmethod
    def _write(file: str, text: str) -> None:
        with open(file, "w", encoding="ascii") as handle:
            handle.write(text)

    @staticmethod
    def _read(file: str) -> str:
        try:
            with open(file, encoding="ascii") as handle:
                return handle.read()
        except FileNotFoundError:
            return ""
