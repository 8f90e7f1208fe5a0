"""Group commit for greenlets: one native thread writes, everybody else waits without blocking."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, TypeVar, cast

import gevent
from gevent.event import AsyncResult, Event
from gevent.threadpool import ThreadPool

from rae_control.ledger.sqlite import Changes, Ledger, Outcome, Tx, unavailable
from rae_control.log import facts
from rae_protocol.errors import RaeError

T = TypeVar("T")
MAX_BATCH = 256
log = logging.getLogger(__name__)


class LedgerWriter:
    """Collects the writes of all greenlets while a commit is under way, then commits them at once.

    `listener` gets what changed, in commit order, before any caller goes on.
    """

    def __init__(
        self, ledger: Ledger, listener: Callable[[Changes], None],
        committed: Callable[[float, int], None],
    ) -> None:  # fmt: skip
        self._ledger = ledger
        self._listener, self._committed = listener, committed
        # Why the last commit failed; None when it did not.
        self.failure: RaeError | None = None
        self._pending: list[tuple[Callable[[Tx], Any], AsyncResult]] = []
        self._wake, self._idle = Event(), Event()
        self._idle.set()
        self._writers = ThreadPool(1)
        self._greenlet = gevent.spawn(self._loop)

    @property
    def backlog(self) -> int:
        """How many writes wait for the next commit."""
        return len(self._pending)

    def write(self, function: Callable[[Tx], T]) -> T:
        """Run in the next transaction; returns when it is on the disk. Raises what it raised."""
        answer = AsyncResult()
        self._pending.append((function, answer))
        self._idle.clear()
        self._wake.set()
        return cast("T", answer.get())

    def close(self) -> None:
        """Finish what is pending and stop."""
        self._idle.wait()
        self._greenlet.kill()
        self._writers.kill()

    def _loop(self) -> None:
        while True:
            self._wake.wait()
            self._wake.clear()
            while self._pending:
                batch, self._pending = self._pending[:MAX_BATCH], self._pending[MAX_BATCH:]
                self._commit(batch)
            self._idle.set()

    def _commit(self, batch: Sequence[tuple[Callable[[Tx], Any], AsyncResult]]) -> None:
        functions = [function for function, _ in batch]
        began = time.perf_counter()
        try:
            done: tuple[list[Outcome[Any]], Changes]
            done = self._writers.apply(self._ledger.transact, (functions,))
            outcomes, changes = done
            self._committed(time.perf_counter() - began, len(batch))
            self.failure = unavailable(outcomes)
            self._listener(changes)
        except BaseException:
            # What memory holds may not be what the ledger holds any more: only a fresh start is
            # safe, and it costs nobody anything (leases are granted a full period).
            log.critical("writer_failed", exc_info=True, extra=facts())
            os._exit(70)
        for (_, answer), outcome in zip(batch, outcomes, strict=True):
            if outcome.error is not None:
                answer.set_exception(outcome.error)
            else:
                answer.set(outcome.value)
