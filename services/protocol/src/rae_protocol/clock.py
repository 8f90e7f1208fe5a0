"""The clocks of both sides, behind one interface so that tests can bring their own."""

from __future__ import annotations

import functools
import time
from pathlib import Path
from typing import Protocol


class Clock(Protocol):
    """Wall time for people and signatures, boot time for intervals (it goes on in a suspend), and
    monotonic time for a quiet that a suspend must not lengthen.
    """

    def wall(self) -> float:
        """Unix seconds."""
        ...

    def boot(self) -> float:
        """Seconds since boot; never steps."""
        ...

    def boot_id(self) -> str:
        """Names the boot that `boot` counts from; empty where that is not known."""
        ...

    def monotonic(self) -> float:
        """Seconds since boot without those in a suspend; never steps."""
        ...


class SystemClock:
    """The machine's clocks."""

    def wall(self) -> float:
        """Unix seconds."""
        return time.time()

    def boot(self) -> float:
        """Seconds on CLOCK_BOOTTIME."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)

    def boot_id(self) -> str:
        """The kernel's own, random(4)."""
        return _boot_id()

    def monotonic(self) -> float:
        """Seconds on CLOCK_MONOTONIC."""
        return time.clock_gettime(time.CLOCK_MONOTONIC)


@functools.cache
def _boot_id() -> str:
    try:
        return Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
    except OSError:
        return ""
