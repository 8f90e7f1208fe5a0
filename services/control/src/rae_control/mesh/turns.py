"""Large pieces of work: one at a time, and each caller's in turn."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager

from gevent.event import Event


class Turns:
    """For greenlets. Who comes while another one works waits, behind one of each other caller."""

    def __init__(self) -> None:
        self._busy = False
        self._waiting: dict[str, deque[Event]] = {}

    @contextmanager
    def of(self, caller: str) -> Iterator[None]:
        """Wait for the turn, and hold it meanwhile."""
        if self._busy:
            mine = Event()
            self._waiting.setdefault(caller, deque()).append(mine)
            try:
                mine.wait()
            except BaseException:
                if mine.is_set():
                    self._next()
                else:
                    self._waiting[caller].remove(mine)
                raise
        self._busy = True
        try:
            yield
        finally:
            self._next()

    def _next(self) -> None:
        while self._waiting:
            caller = next(iter(self._waiting))
            group = self._waiting.pop(caller)
            if not group:
                continue
            following = group.popleft()
            self._waiting[caller] = group  # behind the others
            following.set()
            return
        self._busy = False
