"""CPU use of the machine that is not ours."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection
from dataclasses import dataclass

from rae_node.guard.policy import Reading
from rae_node.host import processes

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
    own = processes.own_cpu_seconds(ours)
    busy, total = processes.machine_cpu_seconds()
    return Sample(busy, total, own)


class LoadSource:
    """Percent of all cores over a window of seconds, less our own."""

    name = "load"

    def __init__(
        self,
        window_s: float,
        *,
        take: Callable[[], Sample] = lambda: measure(processes.own_pids()),
        monotonic: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        self._window, self._take = window_s, take
        self._monotonic, self._sleep = monotonic, sleep
        self._samples: deque[tuple[float, Sample]] = deque()
        self._last: float | None = None
        self._rates: deque[tuple[float, float]] = deque()

    def read(self) -> Reading:
        """Look now; the very first look takes a moment, for a rate needs two.

        The mean over the window may end work, so that a short peak does not; its peak keeps new
        work from beginning.
        """
        if not self._samples:
            self._samples.append((self._monotonic(), self._take()))
            self._sleep(_FIRST_LOOK_S)
        now, sample = self._monotonic(), self._take()
        (first_at, first), (last_at, last) = self._samples[0], self._samples[-1]
        if now - first_at >= _SHORTEST_S and sample.total > first.total:
            self._last = _foreign_percent(first, sample)
        if now - last_at >= _SHORTEST_S and sample.total > last.total:
            self._rates.append((now, _foreign_percent(last, sample)))
        self._samples.append((now, sample))
        # The oldest one stays until another is old enough to take its place.
        while len(self._samples) > 1 and now - self._samples[1][0] >= self._window:
            self._samples.popleft()
        while self._rates and now - self._rates[0][0] >= self._window:
            self._rates.popleft()
        peaks = {"cpu_percent": max(rate for _, rate in self._rates)} if self._rates else {}
        return Reading(self.name, measures={"cpu_percent": self._last}, peaks=peaks)


def _foreign_percent(first: Sample, later: Sample) -> float:
    foreign = (later.busy - first.busy) - (later.own - first.own)
    # The kernel's idle times may go back a little, and make more than everything busy.
    return min(100.0, 100 * max(0.0, foreign) / (later.total - first.total))
