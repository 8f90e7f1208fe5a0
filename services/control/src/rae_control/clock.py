"""The two clocks of control, behind one interface so that tests can bring their own."""

from __future__ import annotations

import time
from datetime import datetime, timezone
from typing import Protocol


class Clock(Protocol):
    """Wall time for what people read, boot time for intervals (it goes on during a suspend)."""

    def wall(self) -> float:
        """Unix seconds."""
        ...

    def boot(self) -> float:
        """Seconds since boot; never steps."""
        ...


class SystemClock:
    """The machine's clocks."""

    def wall(self) -> float:
        """Unix seconds."""
        return time.time()

    def boot(self) -> float:
        """Seconds on CLOCK_BOOTTIME."""
        return time.clock_gettime(time.CLOCK_BOOTTIME)


def moment(unix: float | None) -> datetime | None:
    """Unix seconds as an aware UTC datetime, None stays None."""
    return None if unix is None else datetime.fromtimestamp(unix, tz=timezone.utc)
