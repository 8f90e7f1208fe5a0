"""Group commit for greenlets: one native thread writes, everybody else waits without blocking."""

from __future__ import annotations

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, cast

import gevent
from gevent.event import AsyncResult, Event
from gevent.threadpool import ThreadPool

from rae_control.ledger.base import Changes, Outcome, Store, Tx, unavailable
from rae_control.log import facts
from rae_protocol.errors import RaeError

T = TypeVar("T")
MAX_BATCH = 256
# After this long a commit takes no more writes in: others follow with the next one.
COMMIT_S = 0.05
log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, eq=False)
class _Write:
    function: Callable[[Tx], Any]
    answer: AsyncResult


class LedgerWriter:
    """Collects the writes of all greenlets while a commit is under way, then commits them at once.

    Those that take long (`bulk`) have commits of their own, in turn with those of all others.
    `listener` gets what changed, in commit order, before any caller goes on.
    """

    def __init__(
        self, ledger: Store, listener: Callable[[Changes], None],
        committed: Callable[[float, int], None],
    ) -> None:  # fmt: skip
        self._ledger = ledger
        self._listener, self._committed = listener, committed
        # Why the last commit failed; None when it did not.
        self.failure: RaeError | None = None
        self._small: deque[_Write] = deque()
        self._bulk: deque[_Write] = deque()
        self._bulk_next = False
        self._wake, self._idle = Event(), Event()
        self._idle.set()
        self._writers = ThreadPool(1)
        self._greenlet = gevent.spawn(self._loop)

    @property
    def backlog(self) -> int:
        """How many writes wait for the next commit."""
        return len(self._small) + len(self._bulk)

    def write(self, function: Callable[[Tx], T], *, bulk: bool = False) -> T:
        """Run in a transaction; returns when it is on the disk. Raises what it raised."""
        write = _Write(function, AsyncResult())
        (self._bulk if bulk else self._small).append(write)
        self._idle.clear()
        self._wake.set()
        return cast("T", write.answer.get())

    def close(self) -> None:
        """Finish what is pending and stop."""
        self._idle.wait()
        self._greenlet.kill()
        self._writers.kill()

    def _loop(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            while self.backlog:
                batch = self._batch()
                rest = batch[self._commit(batch) :]
                self._small.extendleft(reversed(rest))
            self._idle.set()

    def _batch(self) -> list[_Write]:
        """The small ones, as far as a commit's time allows, and in turn with them one large one."""
        if self._bulk and (self._bulk_next or not self._small):
            self._bulk_next = False
            return [self._bulk.popleft()]
        self._bulk_next = True
        return [self._small.popleft() for _ in range(min(MAX_BATCH, len(self._small)))]

    def _commit(self, batch: Sequence[_Write]) -> int:
        """Commit; returns how many of them it took in."""
        functions = [write.function for write in batch]
        began = time.perf_counter()
        try:
            done: tuple[list[Outcome[Any]], Changes]
            done = self._writers.apply(self._ledger.transact, (functions, COMMIT_S))
            outcomes, changes = done
            self._committed(time.perf_counter() - began, len(outcomes))
            self.failure = unavailable(outcomes)
            self._listener(changes)
        except BaseException:
            # What memory holds may not be what the ledger holds any more: only a fresh start is
            # safe, and costs no task anything (leases are granted a full period).
            log.critical("writer_failed", exc_info=True, extra=facts())
            os._exit(70)
        for write, outcome in zip(batch, outcomes, strict=False):
            if outcome.error is not None:
                write.answer.set_exception(outcome.error)
            else:
                write.answer.set(outcome.value)
        return len(outcomes)
