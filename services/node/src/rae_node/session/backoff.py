"""Growing pauses between tries."""

from __future__ import annotations

import random

from rae_protocol.transport import Backoff


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
