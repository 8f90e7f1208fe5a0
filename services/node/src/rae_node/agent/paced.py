"""A call that many ask for and that happens at most so often: at once, and for the last of them."""

from __future__ import annotations

import threading
from collections.abc import Callable

from rae_protocol.clock import Clock


class Paced:
    """Call it from any thread."""

    def __init__(self, action: Callable[[], None], every_s: float, clock: Clock) -> None:
        self._action, self._every_s, self._clock = action, every_s, clock
        self._lock = threading.Lock()
        self._last = float("-inf")
        self._waits = False

    def __call__(self) -> None:
        """Now, or as soon as it may be again, once for all who asked meanwhile."""
        with self._lock:
            if self._waits:
                return
            rest = self._last + self._every_s - self._clock.boot()
            if rest > 0:
                later = threading.Timer(rest, self._later)
                later.daemon = True
                try:
                    later.start()
                except RuntimeError:  # no more threads: rather too often than never
                    rest = 0.0
                else:
                    self._waits = True
            if rest <= 0:
                self._last = self._clock.boot()
        if rest <= 0:
            self._action()

    def _later(self) -> None:
        with self._lock:
            self._last, self._waits = self._clock.boot(), False
        self._action()
