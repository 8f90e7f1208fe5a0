"""CPU use of the machine that is not ours."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass

from rae_node import procs
from rae_node.guard.policy import Reading

_FIRST_LOOK_S = 0.2
_SHORTEST_S = 0.15


@dataclass(frozen=True, slots=True)
class Sample:
    """Seconds of CPU time: all cores busy, all cores in all, ours."""

    busy: float
    total: float
    own: float


def measure(ours: Collection[int]) -> Sample:
    """Read /proc. Raises OSError, ValueError."""
    own = procs.own_cpu_seconds(ours)
    busy, total = procs.machine_cpu_seconds()
    return Sample(busy, total, own)


class LoadSource:
    """Percent of all cores over a window of seconds, less our own."""

    name = "load"

    def __init__(
        self,
        window_s: float,
        *,
        take: Callable[[], Sample] = lambda: measure(procs.own_pids()),
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._window, self._take = window_s, take
        self._monotonic, self._sleep = monotonic, sleep
        self._samples: deque[tuple[float, Sample]] = deque()
        self._last: float | None = None

    def read(self) -> Reading:
        """Look now; the very first look takes a moment, for a rate needs two."""
        if not self._samples:
            self._samples.append((self._monotonic(), self._take()))
            self._sleep(_FIRST_LOOK_S)
        now, sample = self._monotonic(), self._take()
        first_at, first = self._samples[0]
        if now - first_at >= _SHORTEST_S and sample.total > first.total:
            foreign = (sample.busy - first.busy) - (sample.own - first.own)
            # The kernel's idle times may go back a little, and make more than everything busy.
            self._last = min(100.0, 100 * max(0.0, foreign) / (sample.total - first.total))
        self._samples.append((now, sample))
        # The oldest one stays until another is old enough to take its place.
        while len(self._samples) > 1 and now - self._samples[1][0] >= self._window:
            self._samples.popleft()
        return Reading(self.name, measures={"cpu_percent": self._last})
