"""Keeps the queue after the ledger: shows what was committed, repairs what Redis lost.

One greenlet does all writing to the queue, in commit order, and nothing waits for it. While Redis
is away its steps are dropped; when it is back, every lane is compared with the ledger and rewritten
where it differs.
"""

from __future__ import annotations

import logging
import secrets
from collections import Counter, defaultdict
from collections.abc import Sequence
from typing import Protocol

import gevent
from gevent.event import Event

from rae_control.core.lanes import LaneTable
from rae_control.core.leases import LeaseTable
from rae_control.errors import QueueUnavailable
from rae_control.ledger import views
from rae_control.ledger.readers import LedgerReaders
from rae_control.queue.rq_queue import Health, Op, RqQueue
from rae_protocol.clock import Clock
from rae_protocol.log import facts

log = logging.getLogger(__name__)
DRIFTED_EVERY = 6
GATHER_S = 0.01
STEPS = 20  # at once: others wait while they are made into commands
_LENGTHENS = {"push": 1, "leave": -1, "drop": -1}
LOOK_S = 1.0  # whether Redis still has what it was given


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
        readers: LedgerReaders,
        lanes: LaneTable,
        leases: LeaseTable,
        *,
        slots: Online,
        clock: Clock,
        interval_s: float,
    ) -> None:
        self.queue = queue
        self.available = True
        self.repairs: Counter[str] = Counter()
        self.health = Health()
        self.compared, self.compare_took = clock.boot(), 0.0
        self._readers, self._lanes, self._leases = readers, lanes, leases
        self._slots = slots
        self._clock, self._interval = clock, interval_s
        self._ops: list[Op] = []
        self._drifted: set[str] = set()
        # The ledger's last event when a lane was read from it to be rewritten.
        self._read_at: dict[str, int] = {}
        self._slots_changed = True
        self._compare_now = True
        self._round = 0
        self._mark = secrets.token_hex(8)
        self._wake = Event()

    def add(self, ops: Sequence[Op]) -> None:
        """Steps that follow a commit."""
        self._ops.extend(ops)
        self._wake.set()

    def slots_changed(self) -> None:
        """A node came or went."""
        self._slots_changed = True
        self._wake.set()

    def unavailable(self, error: QueueUnavailable) -> None:
        """Redis does not answer: everything is compared when it does again."""
        if self.available:
            log.warning("queue_unavailable", extra=facts(error=str(error)))
        self.available = False
        self._compare_now = True

    def run(self) -> None:
        """The greenlet's loop; ends with the process."""
        due = looked = self._clock.boot()
        while True:
            pause = min(LOOK_S, self._interval)
            self._wake.wait(max(0.0, min(pause, due - self._clock.boot())))
            gevent.sleep(GATHER_S)  # steps gather, and answers go out first
            self._wake.clear()
            try:
                if not self.available:
                    self._ops.clear()
                    self.queue.heal(list(self._lanes.lanes), self._slots())
                if self._clock.boot() - looked >= LOOK_S:
                    looked = self._clock.boot()
                    self._compare_now |= not self.queue.marked(self._mark)
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
            ops, self._ops = self._ops[:STEPS], self._ops[STEPS:]
            todo = [op for op in ops if not self._done(op)]
            self._drifted |= self.queue.apply(todo)
            self.queue.forget([op.task_id for op in ops if op.verb == "drop" and op not in todo])

    def _done(self, op: Op) -> bool:
        """Whether the lane was rewritten from a ledger that had this step's event already."""
        return op.verb in {"push", "leave", "drop"} and op.event <= self._read_at.get(op.lane_id, 0)

    def _compare(self) -> None:
        """Compare ledger and queue and repair the queue.

        Counts each time; entries where they drifted, now and then; everything after Redis was away.
        """
        began, health = self._clock.boot(), self.queue.health()
        full = self._compare_now or health.run_id != self.health.run_id
        self.health, self._compare_now = health, False
        if full:
            self.queue.heal(list(self._lanes.lanes), self._slots())
        self._round += 1
        drifted: set[str] = set()
        if self._round % DRIFTED_EVERY == 0:
            drifted, self._drifted = self._drifted, drifted
        # Less the steps under way, memory counts what Redis should hold at this moment, and Redis
        # stays as it is: this greenlet alone changes it.
        wanted = Counter({name: lane.queued for name, lane in self._lanes.lanes.items()})
        for op in self._ops:
            if op.verb in _LENGTHENS and not self._done(op):
                wanted[op.lane_id] -= _LENGTHENS[op.verb]
        have = self.queue.lanes()
        lanes = {*have, *wanted}
        self.queue.show([lane_id for lane_id in wanted if lane_id not in have])
        rewritten = [
            lane_id
            for lane_id in lanes
            if (full or lane_id in drifted or have.get(lane_id, 0) != wanted.get(lane_id, 0))
            and self._repair_lane(lane_id, known=have.get(lane_id, 0) >= 0)
        ]
        self._repair_started(lanes, self.queue.set_slots(self._slots()))
        if full:
            self._forget_others(lanes)
            self.queue.mark(self._mark)
        busy = {lease.lane_id for lease in self._leases}
        for lane_id in have:
            if lane_id not in self._lanes.lanes and lane_id not in busy:
                self.queue.forget_lane(lane_id)
                self._read_at.pop(lane_id, None)
        self.compared = self._clock.boot()
        self.compare_took = self.compared - began
        if rewritten:
            log.warning("queue_repaired", extra=facts(lanes=len(rewritten)))

    def _forget_others(self, lanes: set[str]) -> None:
        """Jobs of tasks that ended while Redis was away."""
        kept = {lease.task_id for lease in self._leases}
        for lane_id in lanes:
            kept.update(self.queue.task_ids(lane_id))
        found = self.queue.jobs()
        # Read last: what was queued or leased meanwhile has its step here, still.
        kept.update(op.task_id for op in self._ops)
        self.queue.forget([task_id for task_id in found if task_id not in kept])

    def _repair_lane(self, lane_id: str, *, known: bool) -> bool:
        """Rewrite a lane that is not as the ledger has it; `known`: it can be read."""
        have = self.queue.task_ids(lane_id) if known else None
        event, wanted = self._readers.read(lambda db: views.queued_ids(db, lane_id), None)
        moving = {op.task_id for op in self._ops if op.event <= event and op.lane_id == lane_id}
        if have is not None and _settled(have, moving) == _settled(wanted, moving):
            return False
        self.queue.rewrite(lane_id, wanted)
        self._read_at[lane_id] = event
        self.repairs["rewrite"] += 1
        return True

    def _repair_started(self, lanes: set[str], fresh: set[str]) -> None:
        leased: defaultdict[str, dict[str, str]] = defaultdict(dict)
        for lease in self._leases:
            leased[lease.lane_id][lease.task_id] = f"{lease.node_id}.{lease.slot}"
        ops: list[Op] = []
        for lane_id in {*lanes, *leased}:
            shown, wanted = self.queue.started(lane_id), leased[lane_id]
            ops += [Op("finish", t, lane_id, 0) for t in shown if t not in wanted]
            ops += [
                Op("start", t, lane_id, 0, worker=worker)
                for t, worker in wanted.items()
                if t not in shown or worker in fresh
            ]
        self.queue.apply(ops)
        self.repairs.update(op.verb for op in ops)


def _settled(task_ids: Sequence[str], moving: set[str]) -> list[str]:
    """Without those that a step under way will push or take."""
    return [task_id for task_id in task_ids if task_id not in moving] if moving else list(task_ids)
