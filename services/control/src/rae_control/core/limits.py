"""How much a caller may ask for in a time."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(slots=True)
class Bucket:
    """A token bucket: `rate` requests a second, `burst` at once. Times on any steady clock."""

    rate: float
    burst: float
    level: float
    filled: float

    def take(self, now: float, cost: float = 1.0) -> float:
        """0 when the request may pass, else the seconds until it may.

        `cost`: as many requests as it counts for; a full bucket is enough for any.
        """
        cost = min(cost, self.burst)
        self.level = min(self.burst, self.level + (now - self.filled) * self.rate)
        self.filled = now
        if self.level >= cost:
            self.level -= cost
            return 0.0
        return (cost - self.level) / self.rate


@dataclass(frozen=True, slots=True)
class Limit:
    """What a bucket allows: `rate` a second, `burst` at once."""

    rate: float
    burst: float

    def bucket(self, now: float) -> Bucket:
        """A full one."""
        return Bucket(self.rate, self.burst, self.burst, now)
