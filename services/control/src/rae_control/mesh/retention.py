"""Keeps the ledger and the folders from growing for ever: summarises and removes, bit by bit."""

from __future__ import annotations

import fcntl
import logging
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from functools import partial
from math import inf
from pathlib import Path

import gevent

from rae_control.ledger import blobs, kept, retention
from rae_control.ledger.base import BATCH_S, Db
from rae_control.log import facts
from rae_control.mesh.state import State
from rae_control.storage.files import in_thread
from rae_protocol.errors import RaeError

log = logging.getLogger(__name__)
DAY_S = 86400.0
QUOTAS_EVERY_S = 10.0
BATCH = 100


@contextmanager
def files_held(data: Path, *, exclusive: bool = False) -> Iterator[bool]:
    """While a backup or a check reads, nothing is removed; False when the others are at it."""
    with (data / "files.lock").open("a") as handle:
        try:
            how = fcntl.LOCK_EX | fcntl.LOCK_NB if exclusive else fcntl.LOCK_SH
            fcntl.flock(handle, how)
        except BlockingIOError:
            yield False
        else:
            yield True


class Retention:
    """One sweep every `retention_every_s`, and a look at the submitters' quotas in between."""

    def __init__(self, state: State, removed: Callable[[Counter[str]], None]) -> None:
        self._state, self._removed = state, removed
        # Made here, so that it belongs to control whoever takes the first backup.
        (state.data / "files.lock").touch()

    def run(self) -> None:
        """The greenlet's loop; ends with the process."""
        every = self._state.config.retention_every_s
        due = self._state.clock.boot() + every
        while True:
            gevent.sleep(min(QUOTAS_EVERY_S, every))
            try:
                self.quotas()
                if self._state.clock.boot() >= due:
                    due = self._state.clock.boot() + every
                    self.sweep()
            except (RaeError, OSError) as error:
                log.error("retention_failed", extra=facts(error=str(error)))

    def quotas(self) -> None:
        """Drop the oldest of what ended tasks left where a submitter has too much of it."""
        state, config = self._state, self._state.config
        trim = partial(kept.trim, most=config.max_kept_bytes)
        while dropped := state.write_some(trim):
            log.info("bodies_dropped", extra=facts(tasks=dropped))
            gevent.sleep(BATCH_S)
        with files_held(state.data, exclusive=True) as held:
            if held:
                look = partial(retention.beyond, most=config.max_record_bytes, limit=BATCH)
                self._summarise(look, inf)

    def sweep(self) -> None:
        """Summarise what is over, and remove what nothing refers to any more."""
        with files_held(self._state.data, exclusive=True) as held, ExitStack() as steps:
            # From the last to the first, each even if the one before failed: on a full disk only
            # what removes files can work, and it makes room for the rest.
            for step in (self._files, self._rows, self._tasks) if held else ():
                steps.callback(step)

    def _tasks(self) -> None:
        state = self._state
        before = state.ledger.earliest() - state.config.retention_days * DAY_S
        self._summarise(partial(retention.over, before=before, limit=BATCH), before)
        lanes, newest = state.read(retention.empty_lanes)
        for start in range(0, len(lanes), BATCH):
            some = lanes[start : start + BATCH]
            state.write(partial(retention.drop_lanes, lanes=some, newest=newest))
        while state.write(partial(retention.forget_node_events, before=before, limit=BATCH)):
            gevent.sleep(BATCH_S)

    def _summarise(self, look: Callable[[Db], list[str]], before: float) -> None:
        """Summarise the tasks that `look` finds, until it finds none."""
        state = self._state
        while (names := state.read(look)) and (
            done := state.write_some(partial(retention.summarise, names=names, before=before))
        ):
            self._removed(Counter(str(task["state"]) for task in done))
            # Only now: a commit that failed must not have cost a log.
            for task in done:
                in_thread(state.logs.remove, task["task_id"], task["attempts"])
            log.info("tasks_summarised", extra=facts(tasks=len(done)))
            gevent.sleep(BATCH_S)

    def _rows(self) -> None:
        state = self._state
        before = state.ledger.earliest() - state.config.blob_grace_s
        found = state.read(partial(blobs.unread, before=before))
        for start in range(0, len(found), BATCH):
            some_blobs = found[start : start + BATCH]
            state.write(partial(blobs.drop, blobs=some_blobs, before=before))

    def _files(self) -> None:
        state = self._state
        before = state.ledger.earliest() - state.config.blob_grace_s
        logs = in_thread(state.logs.older, before)
        for task_id in state.read(partial(retention.unknown_tasks, names=list(logs))):
            in_thread(state.logs.remove, task_id, logs[task_id])
        names = state.blobs.older(before)
        for start in range(0, len(names), BATCH):
            some = names[start : start + BATCH]
            for name in state.read(partial(retention.unknown, names=some)):
                state.blobs.remove(name, before)
