"""What the control process knows: memory that follows the ledger, commit by commit."""

from __future__ import annotations

import shutil
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import apsw
import gevent
from gevent.event import Event

from rae_control.config import ControlConfig
from rae_control.core.hold import Hold
from rae_control.core.lanes import LaneTable
from rae_control.core.leases import Lease, LeaseTable
from rae_control.core.retries import Limits
from rae_control.files import BlobStore, LogStore
from rae_control.ledger import hold as ledger_hold
from rae_control.ledger import views
from rae_control.ledger.store import Ledger, Moved, Row, Tx
from rae_control.ledger.tasks import LIVE
from rae_control.metrics import Metrics
from rae_control.nodes import NodeEntry, NodeTable
from rae_control.writer import LedgerWriter
from rae_protocol.clock import Clock
from rae_protocol.errors import RaeError
from rae_protocol.models import Held

T = TypeVar("T")
HOLD_KEPT_EVERY_S = 60.0


class Signals:
    """Who waits for news: of one task, or of anything."""

    def __init__(self) -> None:
        self._tasks: defaultdict[str, set[Event]] = defaultdict(set)
        self._any: set[Event] = set()
        self._over = False

    def stop(self) -> None:
        """End all waiting, now and later."""
        self._over = True
        for event in {*self._any, *(event for group in self._tasks.values() for event in group)}:
            event.set()

    def wait(self, names: Sequence[str], seconds: float, ready: Callable[[], bool]) -> None:
        """Return when `ready` says so after news of these names (none: of any), or in time."""
        event = Event()
        groups = [self._tasks[name] for name in names] or [self._any]
        for group in groups:
            group.add(event)
        try:
            with gevent.Timeout(seconds, False):
                while not (ready() or self._over):
                    event.wait()
                    event.clear()
        finally:
            for group in groups:
                group.discard(event)
            for name in names:
                if not self._tasks.get(name):
                    self._tasks.pop(name, None)

    def tell(self, name: str) -> None:
        """There is news of a task (its id), or of its log (`log <id>`)."""
        for event in (*self._tasks.get(name, ()), *self._any):
            event.set()


class State(ABC):
    """The ledger with everything that is derived from it. Rebuilt from the ledger at the start."""

    def __init__(self, data: Path, config: ControlConfig, clock: Clock, metrics: Metrics) -> None:
        self.data, self.config, self.clock, self.metrics = data, config, clock, metrics
        self.limits = Limits(
            config.retry_backoff_s, config.retry_backoff_max_s, config.interruption_pause_s,
            config.interruption_pause_max_s, config.max_interruptions,
        )  # fmt: skip
        self.ledger = Ledger(data / "ledger.db", clock)
        self.blobs = BlobStore(data / "blobs")
        self.logs = LogStore(data / "logs", config.max_log_bytes)
        self.signals = Signals()
        self.lanes, self.leases = LaneTable(), LeaseTable()
        self.nodes = NodeTable(config.rate_limit_per_s, config.rate_limit_burst)
        # Boot time until which a cut-off attempt may be alive, by its lease.
        self.fences: dict[str, float] = {}
        self.backlog: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
        self.states: Counter[str] = Counter()
        self._hold_kept: dict[str, Any] = {}
        self._load()
        self.writer = LedgerWriter(self.ledger, self._moved, metrics.committed)

    def close(self) -> None:
        """Finish pending writes, let another process in."""
        self.writer.close()
        self.ledger.close()

    @abstractmethod
    def follow_task(self, move: Moved) -> None:
        """What else follows a task's change, after memory has. Must not block."""

    @abstractmethod
    def follow_node(self) -> None:
        """What else follows a node's coming and going."""

    def write(self, function: Callable[[Tx], T]) -> T:
        """Run in the next ledger transaction; durable when it returns."""
        return self.writer.write(function)

    def read(self, function: Callable[[apsw.Connection], T]) -> T:
        """Run a reading function on one snapshot."""
        return self.writer.read(function)

    def check_disk(self) -> None:
        """Refuse new work before SQLite would fail. Raises RaeError `disk_low`."""
        free = shutil.disk_usage(self.data).free
        if free < self.config.low_water_bytes:
            raise RaeError("disk_low", f"{free // 2**20} MiB are free", retry_after_s=30)

    def node_changed(self, row: Row) -> NodeEntry:
        """Take a node's row over after its commit."""
        entry = self.nodes.update(row, self.clock.boot())
        self.follow_node()
        self.signals.tell(f"node {entry.node_id}")
        return entry

    def _load(self) -> None:
        """Start from the ledger. Every open lease and online node gets a full period."""
        now = self.clock.boot()
        for row in self.ledger.read(lambda db: views.all_rows(db, "nodes")):
            self.nodes.update(row, now)
        for row in self.ledger.read(views.lane_heads):
            self.lanes.load(row["lane_id"], row["requirements"], row["queued"], row["oldest"])
        for row in self.ledger.read(views.open_leases):
            self.leases.open(_lease(row, now, acked=row["acked_at"] is not None))
        for row in self.ledger.read(views.fences):
            self.fences[row["fence"]] = now + row["lease_ttl_s"]
        for row in self.ledger.read(views.backlog):
            self.backlog[row["submitter"]] = [row["tasks"], row["bytes"]]
        self.states.update(self.ledger.read(views.states))
        self.hold = self._resume_hold(now)

    def _resume_hold(self, now: float) -> Hold | None:
        wall, longest = self.clock.wall(), self.config.max_lease_ttl_s
        found = self.ledger.read(lambda db: ledger_hold.resume(db, wall, now, longest))
        if found is None:
            return None
        hold, self._hold_kept = found
        # On a full disk the older record stays: from it a later start counts no less.
        self.ledger.transact([partial(ledger_hold.keep, hold=self._hold_kept)])
        return hold

    def keep_hold(self) -> None:
        """Note now and then how much of a restore's hold has passed: a reboot must not undo it."""
        now = self.clock.boot()
        if self.hold is not None and now - self._hold_kept["boot"] >= HOLD_KEPT_EVERY_S:
            self._hold_kept = ledger_hold.moved_on(self._hold_kept, self.clock.wall(), now)
            self.write(partial(ledger_hold.keep, hold=self._hold_kept))

    def hold_over(self) -> bool:
        """Whether a restore's hold has just ended, for good."""
        if self.hold is None or self.hold.left(self.clock.boot()) > 0:
            return False
        self.write(ledger_hold.end)
        self.hold = None
        return True

    def held(self) -> Held | None:
        """Until when no lease is given after a restore; None when leases are given."""
        left = 0.0 if self.hold is None else self.hold.left(self.clock.boot())
        if self.hold is None or left <= 0:
            return None
        until = datetime.fromtimestamp(self.clock.wall() + left, tz=timezone.utc)
        waits_for = self.hold.waits_for
        return Held(until=until, nodes=None if waits_for is None else len(waits_for))

    def why_held(self) -> str | None:
        """The same in words."""
        held = self.held()
        if held is None or self.hold is None:
            return None
        return self.hold.sentence(f"{held.until:%Y-%m-%d %H:%M:%S} UTC")

    def _moved(self, moved: Sequence[Moved]) -> None:
        """Memory follows a commit. Runs between commits, so it must not block."""
        now = self.clock.boot()
        for move in moved:
            self.metrics.moved(move, self.leases.get(move.lease_id or ""), now)
            self._count(move)
            self._follow_lease(move)
            self.follow_task(move)
            self.signals.tell(move.task["task_id"])

    def _count(self, move: Moved) -> None:
        task, lane_id = move.task, move.task["lane_id"]
        self.states[move.new] += 1
        if move.old is not None:
            self.states[move.old] -= 1
        entry = self.backlog[task["submitter"]]
        delta = (move.new in {"waiting", "queued"}) - (move.old in {"waiting", "queued"})
        entry[0] += delta
        entry[1] += delta * len(task["spec"])
        if move.old == "queued":
            self.lanes.remove(lane_id, move.lane_oldest)
        if move.new == "queued":
            self.lanes.add(lane_id, task["seq"], move.requirements)

    def _follow_lease(self, move: Moved) -> None:
        now = self.clock.boot()
        if move.new == "leased":
            self.leases.open(_lease(move.task, now, acked=False))
        elif move.new == "running" and move.lease_id:
            lease = self.leases.get(move.lease_id)
            if lease is not None:
                lease.acked = lease.renewed = now
        elif move.old in LIVE and move.lease_id:
            lease = self.leases.close(move.lease_id)
            if lease is not None and move.task["fence"] == lease.lease_id:
                self.fences[lease.lease_id] = now + lease.ttl_s


def _lease(row: Row, now: float, *, acked: bool) -> Lease:
    return Lease(
        lease_id=row["lease_id"],
        task_id=row["task_id"],
        attempt=row["attempts"],
        node_id=row["node_id"],
        slot=row["slot"],
        lane_id=row["lane_id"],
        ttl_s=row["lease_ttl_s"],
        timeout_s=row["timeout_s"],
        renewed=now,
        claimed=now,
        acked=now if acked else None,
    )
