"""The clocks of the node behind one interface, so that tests can bring their own."""

from __future__ import annotations

import time
from typing import Protocol


class Clock(Protocol):
    """Wall time for what people read; boot time for deadlines, for it goes on in a suspend."""

    def wall(self) -> float:
        """Unix seconds."""
        ...

    def boot(self) -> float:
        """Seconds on CLOCK_BOOTTIME; never steps."""
        ...


class SystemClock:
    """The machine's clocks."""

    def wall(self) -> float:
        """Unix seconds."""
        return time.time()

    def boot(self) -> float:
        """Seconds on CLOCK_BOOTTIME."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)
