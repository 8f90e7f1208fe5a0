"""The clocks of the node behind one interface, so that tests can bring their own; and pauses."""

from __future__ import annotations

import random
import time
from typing import Protocol

from rae_protocol.transport import Backoff


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


class Pauses:
    """Growing pauses with jitter between tries that fail; set `failures` to 0 after a success."""

    def __init__(self, base_s: float, cap_s: float) -> None:
        self.failures = 0
        self._backoff = Backoff(base_s=base_s, cap_s=cap_s)
        self._rng = random.Random()  # noqa: S311 - jitter, not a secret

    def next(self) -> float:
        """Seconds to wait after one more failure."""
        pause = self._backoff.delay(self.failures, self._rng) + 0.05
        self.failures += 1
        return pause
