"""What a supervisor looks at again and again: memory and files of its task, and what is left of
the machine's. Standard library only.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Collection
from typing import Any

from rae_node.supervisor.disk_usage import TooMuch, disk_usage
from rae_node.supervisor.process_tree import descendants, memory_left_mb, memory_used_mb, stopped

MEMORY_ROUND_S, DISK_ROUND_S = 0.2, 1.0
_LOOK_SHARE = 20  # a look takes at most this part of the time between two …
_LONGEST_PAUSE_S = 3.0  # … but a task that makes looks slow does not have all that time to itself
_MIB = 1048576
# The machine is nearly out of something, and the task is not shown to be the cause.
SHORT = "short"
Found = tuple[str, str | None]


def boot() -> float:
    """Seconds on CLOCK_BOOTTIME."""
    return time.clock_gettime(time.CLOCK_BOOTTIME)


class Watch:
    """Over one task. `counted`: the kernel itself minds its memory, all kinds of it."""

    def __init__(self, spec: dict[str, Any], *, counted: bool) -> None:
        self._limits: dict[str, Any] = spec["limits"]
        self._workspace = str(spec["workspace"])
        # Held open: a task may remove it, and its disk is looked at all the same.
        self._logs = os.open(str(spec["log_dir"]), os.O_PATH | os.O_DIRECTORY)
        self._most, self._counted = int(self._limits["max_files"]), counted
        self.peak_mb = 0.0
        self._left_before, self._memory_before = self._left(), memory_left_mb()
        self._before, self._memory_due, self._disk_due = 0, 0.0, boot() + MEMORY_ROUND_S
        with contextlib.suppress(TooMuch):
            self._before = disk_usage(self._workspace, (), self._most)

    def look(self, now: float, ours: Collection[int | None]) -> Found | None:
        """Why the task must end, with what its sender should know; None when all is well.

        `ours`: processes of the box itself.
        """
        found = None
        if self._limits["memory_mb"] is not None and now >= self._memory_due:
            found = self._look_at_memory(self._limits["memory_mb"])
            self._memory_due = boot() + _pause(boot() - now, MEMORY_ROUND_S)
        if found is None and self._limits["disk_bytes"] is not None and now >= self._disk_due:
            before = boot()
            found = self._look_at_disk(self._limits["disk_bytes"], ours)
            self._disk_due = boot() + _pause(boot() - before, DISK_ROUND_S)
        return found

    def _look_at_memory(self, limit_mb: float) -> Found | None:
        used = memory_used_mb(descendants(os.getpid()), limit_mb)
        self.peak_mb = max(self.peak_mb, used)
        if used > limit_mb:
            return "memory", None
        # Data within a socket is no process's memory; nor is a mapped file without a name.
        left, spare = memory_left_mb(), float(self._limits["spare_memory_mb"])
        if self._counted or left >= spare:
            return None
        if is_its_doing(used, self._memory_before, left, spare):
            return "memory", None
        return SHORT, "this machine was nearly out of memory"

    def _look_at_disk(self, limit: int, ours: Collection[int | None]) -> Found | None:
        """Files that are too many or too large, also those without a name any more."""
        try:
            used = self._used(ours)
            left = self._left()
            if self._left_before - left - used > limit:
                # Others' files; or it moves its own to where this look has been, which it can tell.
                with stopped(lambda: [one for one in descendants(os.getpid()) if one not in ours]):
                    used = self._used(ours)
                self._left_before = left + used
        except TooMuch as error:
            return "output", str(error)
        if used > limit:
            return "output", f"its files took {used // _MIB} MiB"
        spare = float(self._limits["spare_disk_mb"]) * _MIB
        if left >= spare:
            return None
        if is_its_doing(used, self._left_before, left, spare):
            return "output", f"its files took {used // _MIB} MiB, and the disk was nearly full"
        return SHORT, "this machine's disk was nearly full"

    def _used(self, ours: Collection[int | None]) -> int:
        pids = descendants(os.getpid())
        return disk_usage(self._workspace, pids, self._most, ours) - self._before

    def _left(self) -> int:
        found = os.fstatvfs(self._logs)
        return found.f_bavail * found.f_frsize


def is_its_doing(used: float, before: float, left: float, spare: float) -> bool:
    """Whether enough would be left without a task, which took most of what went since its start."""
    return left + used >= spare and 2 * used >= before - left


def _pause(look_s: float, least_s: float) -> float:
    return max(least_s, min(_LONGEST_PAUSE_S, _LOOK_SHARE * look_s))
