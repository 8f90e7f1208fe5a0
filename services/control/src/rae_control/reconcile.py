"""Keeps the queue after the ledger: pushes what was committed, repairs what Redis lost.

One greenlet does all writing to the queue, in commit order. While Redis is away its steps are
dropped; when it is back, the comparison with the ledger brings everything back.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Protocol

import gevent
from gevent.event import Event

from rae_control.core.lanes import LaneTable
from rae_control.core.leases import LeaseTable
from rae_control.errors import QueueUnavailable
from rae_control.ledger import views
from rae_control.log import facts
from rae_control.queue import Health, Op, RqQueue
from rae_control.writer import LedgerWriter
from rae_protocol.clock import Clock

log = logging.getLogger(__name__)
FULL_EVERY = 6
GATHER_S = 0.01


class Online(Protocol):
    """Where the names of the slots that should be shown come from."""

    def __call__(self) -> list[str]:
        """`node.slot` of every slot of every online node."""
        ...


class QueueKeeper:
    """The queue's one writer. `available` says whether Redis answered last time."""

    def __init__(
        self,
        queue: RqQueue,
        writer: LedgerWriter,
        lanes: LaneTable,
        leases: LeaseTable,
        *,
        slots: Online,
        pushed: Callable[[dict[str, int]], None],
        clock: Clock,
        interval_s: float,
    ) -> None:
        self.queue = queue
        self.available = True
        self.repairs: Counter[str] = Counter()
        self.health = Health()
        self.compared, self.compare_took = clock.boot(), 0.0
        # Taken from the queue by a claim that is not committed yet.
        self.in_flight: set[str] = set()
        self._writer, self._lanes, self._leases = writer, lanes, leases
        self._slots, self._pushed = slots, pushed
        self._clock, self._interval = clock, interval_s
        self._ops: list[Op] = []
        self._slots_changed = True
        self._compare_now = True
        self._round = 0
        self._wake, self._pushes = Event(), Event()

    def add(self, ops: Sequence[Op]) -> None:
        """Steps that follow a commit."""
        self._ops.extend(ops)
        self._wake.set()
        if any(op.verb == "push" for op in ops):
            self._pushes.set()

    def slots_changed(self) -> None:
        """A node came or went."""
        self._slots_changed = True
        self._wake.set()

    def unavailable(self, error: QueueUnavailable) -> None:
        """Somebody else noticed that Redis is away."""
        if self.available:
            log.warning("queue_unavailable", extra=facts(error=str(error)))
        self.available = False
        self._compare_now = True

    def run(self) -> None:
        """The greenlet's loop; ends with the process."""
        due = self._clock.boot()
        while True:
            pause = self._interval if self.available else min(1.0, self._interval)
            self._wake.wait(max(0.0, min(pause, due - self._clock.boot())))
            # Somebody waits for pushes. The rest gathers, and lets answers go out first.
            self._pushes.wait(GATHER_S)
            self._wake.clear()
            self._pushes.clear()
            try:
                if not self.available:
                    self._ops.clear()
                    self._round = 0
                    self.queue.ping()
                self._apply()
                if self._compare_now or self._clock.boot() >= due:
                    self._compare()
                    due = self._clock.boot() + self._interval
                if not self.available:
                    log.warning("queue_available", extra=facts())
                self.available = True
            except QueueUnavailable as error:
                self.unavailable(error)
                gevent.sleep(min(0.5, self._interval))

    def _apply(self) -> None:
        if self._slots_changed:
            self._slots_changed = False
            self.queue.set_slots(self._slots())
        while self._ops:
            ops, self._ops = self._ops[:500], self._ops[500:]
            self.queue.apply(ops)
            counts: dict[str, int] = {}
            for op in ops:
                if op.verb == "push":
                    counts[op.lane_id] = counts.get(op.lane_id, 0) + 1
            if counts:
                self._pushed(counts)

    def _compare(self) -> None:
        """Compare ledger and queue and repair the queue.

        Counts first; every sixth time also lane by lane, because equal counts may hide a swap.
        """
        began = self._clock.boot()
        full = self._compare_now or self._round % FULL_EVERY == 0
        self._compare_now = False
        self._round += 1
        have = self.queue.lanes()
        heads = {row["lane_id"]: row for row in self._writer.read(views.lane_heads)}
        fixed: dict[str, int] = {}
        for lane_id in {*have, *heads}:
            wanted = heads[lane_id]["queued"] if lane_id in heads else 0
            if full or have.get(lane_id, 0) != wanted:
                missing = self._repair_lane(lane_id)
                if missing:
                    fixed[lane_id] = missing
        self._repair_started({*have, *heads}, self.queue.set_slots(self._slots()))
        busy = {lease.lane_id for lease in self._leases}
        for lane_id in have:
            if lane_id not in self._lanes.lanes and lane_id not in busy:
                self.queue.forget_lane(lane_id)
        self.health = self.queue.health()
        self.compared = self._clock.boot()
        self.compare_took = self.compared - began
        if fixed:
            log.warning("queue_repaired", extra=facts(pushed=sum(fixed.values())))
            self._pushed(fixed)

    def _repair_lane(self, lane_id: str) -> int:
        queued = self.queue.task_ids(lane_id)
        wanted = self._writer.read(lambda db: views.queued_ids(db, lane_id))
        # What is on its way in either direction needs no repair. (One that slips through does no
        # harm: the claim that finds it fails in the ledger.)
        moving = {op.task_id for op in self._ops} | self.in_flight
        have, want = set(queued) | moving, set(wanted)
        twice = {task_id for task_id, count in Counter(queued).items() if count > 1}
        missing = [task_id for task_id in wanted if task_id not in have]
        leased = {lease.task_id for lease in self._leases}
        extra = set(queued) - want - leased - moving
        ops = [Op("drop", task_id, lane_id) for task_id in extra]
        if not twice and (len(missing) == len(wanted) or len(missing) < 50):
            ops += [Op("push", task_id, lane_id) for task_id in missing]
        else:
            ops = [Op("clear", "", lane_id)]
            ops += [Op("push", task_id, lane_id) for task_id in wanted if task_id not in moving]
        self.queue.apply(ops)
        self.repairs.update(op.verb for op in ops)
        return len(missing)

    def _repair_started(self, lanes: set[str], fresh: set[str]) -> None:
        wanted = {lease.task_id: lease for lease in self._leases}
        ops: list[Op] = []
        for lane_id in {*lanes, *(lease.lane_id for lease in wanted.values())}:
            shown = self.queue.started(lane_id)
            ops += [Op("finish", t, lane_id) for t in shown if t not in wanted]
            for t, lease in wanted.items():
                worker = f"{lease.node_id}.{lease.slot}"
                if lease.lane_id == lane_id and (t not in shown or worker in fresh):
                    # An old file of Redis may have it as queued, still.
                    ops += [Op("drop", t, lane_id), Op("start", t, lane_id, worker=worker)]
        self.queue.apply(ops)
        self.repairs.update(op.verb for op in ops)
