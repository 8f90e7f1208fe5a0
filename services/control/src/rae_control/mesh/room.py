"""How much may wait: limits that a submit is held to within its own transaction."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rae_control.config import ControlConfig
from rae_control.ledger import kept
from rae_control.ledger.base import Moved, Tx
from rae_protocol.errors import RaeError

WAIT = frozenset({"waiting", "queued"})


class Room:
    """For the writer's thread alone. Memory stands still while a transaction runs.

    `backlog`: tasks and bytes that wait, by submitter; `lanes`: how many tasks wait in each lane;
    `lanes_of`: how many lanes of a submitter have such tasks. All are as the last commit left them;
    what the transaction itself has moved comes on top.
    """

    def __init__(
        self, config: ControlConfig, backlog: Mapping[str, Sequence[int]],
        lanes: Mapping[str, int], lanes_of: Mapping[str, int],
    ) -> None:  # fmt: skip
        self._config, self._backlog = config, backlog
        self._lanes, self._lanes_of = lanes, lanes_of
        self._batch: Sequence[Moved] = ()
        self._taken = 0
        self._more: dict[str, list[int]] = {}
        self._opened: dict[str, str] = {}  # lanes with their submitters

    def check(self, tx: Tx, submitter: str) -> None:
        """After a submit or a requeue has written its tasks.

        Raises RaeError `queue_full`, `too_many_lanes`.
        """
        batch = tx.batch.moved
        if batch is not self._batch:
            self._batch, self._taken, self._more, self._opened = batch, 0, {}, {}
        for move in batch[self._taken :]:
            _count(move, self._more, self._opened)
        self._taken = len(batch)
        mine, opened = {submitter: list(self._more.get(submitter, (0, 0)))}, dict(self._opened)
        for move in tx.changes.moved:
            _count(move, mine, opened)
        before = self._backlog.get(submitter, (0, 0))
        tasks, size = (was + more for was, more in zip(before, mine[submitter], strict=True))
        if tasks > self._config.max_queued or size > self._config.max_queued_bytes:
            raise RaeError(
                "queue_full", f"{before[0]} tasks with {before[1]} bytes wait", retry_after_s=30
            )
        left = kept.record_of(tx.db, submitter)
        if left > 2 * self._config.max_record_bytes:
            cause = f"{left} bytes of records cannot be removed: tasks that wait need them"
            raise RaeError("queue_full", cause, retry_after_s=30)
        if {move.task["lane_id"] for move in tx.changes.moved} - self._lanes.keys():
            self._check_lanes(submitter, opened)

    def _check_lanes(self, submitter: str, opened: Mapping[str, str]) -> None:
        fresh = [owner for lane, owner in opened.items() if lane not in self._lanes]
        have = self._lanes_of.get(submitter, 0)
        mine, all_of_them = have + fresh.count(submitter), len(self._lanes) + len(fresh)
        most, kept = self._config.max_lanes, max(1, self._config.max_lanes // 100)
        if mine > self._config.max_lanes_per_submitter or (all_of_them > most and mine > kept):
            cause = f"{have} lanes of this submitter are open, and {len(self._lanes)} in all"
            raise RaeError("too_many_lanes", cause, retry_after_s=30)


def _count(move: Moved, waits: dict[str, list[int]], opened: dict[str, str]) -> None:
    delta = (move.new in WAIT) - (move.old in WAIT)
    entry = waits.setdefault(move.task["submitter"], [0, 0])
    entry[0] += delta
    entry[1] += delta * move.task["spec_bytes"]
    if delta > 0:
        opened[move.task["lane_id"]] = move.task["submitter"]
