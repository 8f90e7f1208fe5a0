"""The ledger's reader threads, shared fairly between callers."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Hashable
from typing import Any, TypeVar, cast

import gevent
from gevent.event import AsyncResult
from gevent.queue import Queue
from gevent.threadpool import ThreadPool

from rae_control.ledger.base import Db, Store
from rae_control.ledger.sqlite import READERS
from rae_control.storage.files import in_thread
from rae_protocol.errors import RaeError

T = TypeVar("T")
Read = Callable[[Db], Any]
# Reads of one caller that wait; as many as a token has connections (core/gate.py).
MOST_WAITING = 2000


class LedgerReaders:
    """Each caller has one read under way at a time, and callers take turns.

    So a caller with a thousand slow reads leaves a reader free, and delays others no more than the
    read that is under way.
    """

    def __init__(self, ledger: Store) -> None:
        self._ledger = ledger
        self._pool = ThreadPool(READERS)
        # Callers that wait for a reader; none of them has a read under way.
        self._turns: Queue[Hashable] = Queue()
        # All callers with a read under way, or that wait, with the reads that have not begun.
        self._waiting: dict[Hashable, deque[tuple[Read, AsyncResult]]] = {}
        self._greenlets = [gevent.spawn(self._loop) for _ in range(READERS)]

    def read(self, function: Callable[[Db], T], who: Hashable) -> T:
        """Run a reading function in a reader thread, on one snapshot. Raises what it raised.

        Raises RaeError `rate_limited` where too many reads of this caller wait.
        """
        waiting = self._waiting.get(who)
        if waiting is None:
            waiting = self._waiting[who] = deque()
            self._turns.put(who)
        elif len(waiting) >= MOST_WAITING:
            raise RaeError("rate_limited", "too many reads of this caller wait", retry_after_s=1)
        answer = AsyncResult()
        waiting.append((function, answer))
        return cast("T", answer.get())

    def close(self) -> None:
        """Stop."""
        gevent.killall(self._greenlets)
        self._pool.kill()

    def _loop(self) -> None:
        for who in self._turns:
            waiting = self._waiting[who]
            function, answer = waiting.popleft()
            try:
                answer.set(in_thread(self._ledger.read, function, pool=self._pool))
            except Exception as error:
                answer.set_exception(error)
            if waiting:
                self._turns.put(who)
            else:
                del self._waiting[who]
