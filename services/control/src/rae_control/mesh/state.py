"""What the control process knows: memory that follows the ledger, commit by commit."""

from __future__ import annotations

import json
import logging
import shutil
from abc import ABC, abstractmethod
from collections import Counter, defaultdict
from collections.abc import Callable, Collection, Hashable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any, TypeVar

import gevent
from gevent.event import Event
from gevent.lock import BoundedSemaphore

from rae_control.config import ControlConfig
from rae_control.core.health import Health, Reporter
from rae_control.core.hold import Hold
from rae_control.core.lanes import LaneTable
from rae_control.core.leases import Lease, LeaseTable
from rae_control.core.limits import Limit
from rae_control.core.retries import Limits, speaks_of_node
from rae_control.ledger import hold as ledger_hold
from rae_control.ledger import nodes as ledger_nodes
from rae_control.ledger import retention, views
from rae_control.ledger.base import BATCH_S, Changes, Db, Moved, Row, Store, Tx
from rae_control.ledger.due import shift_pauses
from rae_control.ledger.readers import LedgerReaders
from rae_control.ledger.sqlite import Ledger, keep_clock
from rae_control.ledger.tasks import LIVE
from rae_control.ledger.writer import LedgerWriter
from rae_control.log import facts
from rae_control.mesh.metrics import Metrics
from rae_control.mesh.room import Room
from rae_control.mesh.turns import Turns
from rae_control.node_table import NodeEntry, NodeTable
from rae_control.storage.files import BlobStore, LogStore
from rae_protocol.clock import Clock
from rae_protocol.errors import RaeError
from rae_protocol.models import Held

T = TypeVar("T")
KEPT_EVERY_S = 60.0
CHANGES_AT_ONCE = 16
log = logging.getLogger(__name__)


class Signals:
    """Who waits for news, by names: see `tell`."""

    def __init__(self) -> None:
        self._waiting: defaultdict[str, set[Event]] = defaultdict(set)
        self._over = False

    def stop(self) -> None:
        """End all waiting, now and later."""
        self._over = True
        for name in list(self._waiting):
            self.tell(name)

    def wait(self, names: Sequence[str], seconds: float, ready: Callable[[], bool]) -> None:
        """Return when `ready` says so after news of these names, or in time."""
        event = Event()
        for name in names:
            self._waiting[name].add(event)
        try:
            with gevent.Timeout(seconds, False):
                while not (ready() or self._over):
                    event.wait()
                    event.clear()
        finally:
            for name in names:
                self._waiting[name].discard(event)
                if not self._waiting[name]:
                    del self._waiting[name]

    def tell(self, name: str) -> None:
        """There is news of a task (its id), of its log (`log ID`), or events (`events_of`)."""
        for event in self._waiting.get(name, ()):
            event.set()


def events_of(submitter: str | None) -> str:
    """The name of news of a submitter's events (None: of all events)."""
    return f"events {submitter or '*'}"


@dataclass(frozen=True, slots=True)
class Fence:
    """A cut-off attempt that may be alive until then, on the boot clock."""

    until: float
    node_id: str
    task_id: str


class State(ABC):
    """The ledger with everything that is derived from it. Rebuilt from the ledger at the start."""

    def __init__(self, data: Path, config: ControlConfig, clock: Clock, metrics: Metrics) -> None:
        self.data, self.config, self.clock, self.metrics = data, config, clock, metrics
        self.limits = Limits(
            config.retry_backoff_s, config.retry_backoff_max_s, config.interruption_pause_s,
            config.interruption_pause_max_s, config.max_interruptions,
        )  # fmt: skip
        self.ledger: Store = Ledger(data / "ledger.db", clock, config.clock_settle_s)
        self.blobs = BlobStore(data / "blobs")
        self.logs = LogStore(data / "logs", config.max_log_bytes)
        self.signals = Signals()
        self.lanes, self.leases = LaneTable(), LeaseTable()
        self.nodes = NodeTable(
            Limit(config.rate_limit_per_s, config.rate_limit_burst),
            Limit(config.register_limit_per_s, config.register_limit_burst),
        )
        self.fences: dict[str, Fence] = {}  # by lease
        self.backlog: defaultdict[str, list[int]] = defaultdict(lambda: [0, 0])
        self.lane_sizes: dict[str, int] = {}  # tasks that wait or are queued, by lane
        self.health = Health(config.cordon_after_tasks)
        self.lanes_of: Counter[str] = Counter()  # lanes with such tasks, by submitter
        self.room = Room(config, self.backlog, self.lane_sizes, self.lanes_of)
        self.states: Counter[str] = Counter()
        self._hold_kept: dict[str, Any] = {}
        self._clock_kept = float("-inf")
        self._load()
        self.writer = LedgerWriter(self.ledger, self._changed, metrics.committed)
        self.readers = LedgerReaders(self.ledger)
        self.turns = Turns()  # of submits that are large
        # Of each caller so many small submits, cancels and requeues are worked on at a time.
        self.changing: defaultdict[str, BoundedSemaphore] = defaultdict(
            lambda: BoundedSemaphore(CHANGES_AT_ONCE)
        )

    def close(self) -> None:
        """Finish pending writes, let another process in."""
        self.writer.close()
        self.readers.close()
        self.ledger.close()

    @abstractmethod
    def follow_task(self, move: Moved) -> None:
        """What else follows a task's change, after memory has. Must not block."""

    @abstractmethod
    def follow_queued(self, moves: Sequence[Moved]) -> None:
        """Tasks were queued. Must not block."""

    @abstractmethod
    def follow_node(self, entry: NodeEntry) -> None:
        """What else follows a node's change. Must not block."""

    @abstractmethod
    def follow_token(self, row: Row) -> None:
        """What follows a token's change."""

    def write(self, function: Callable[[Tx], T], *, bulk: bool = False) -> T:
        """Run in a ledger transaction; durable when it returns. `bulk`: it takes long."""
        return self.writer.write(function, bulk=bulk)

    def write_some(self, function: Callable[[Tx, Callable[[], bool]], T]) -> T:
        """The same for work in pieces: the function asks after each whether to go on.

        It holds the writer for `BATCH_S`, then others have their turn.
        """
        clock = self.clock

        def run(tx: Tx) -> T:
            end = clock.boot() + BATCH_S
            return function(tx, lambda: clock.boot() < end)

        return self.write(run)

    def read(self, function: Callable[[Db], T], who: Hashable = None) -> T:
        """Run a reading function on one snapshot; `who` takes turns with others (None: control)."""
        return self.readers.read(function, who)

    def storing(self, names: Collection[str]) -> AbstractContextManager[None]:
        """Around the storing of blobs and their rows: where it fails, their bytes go again."""
        unknown = partial(retention.unknown, names=sorted(set(names)))
        return self.blobs.storing(names, lambda: self.read(unknown))

    def check_commits(self) -> None:
        """Whether the ledger takes commits, by the last one. Raises RaeError `ledger_unavailable`.

        Writes nothing: after a failure the reaper tries, once a second.
        """
        if self.writer.failure is not None:
            raise self.writer.failure

    def try_commit(self) -> None:
        """After a failed commit: one that changes nothing. Raises RaeError as `check_commits`."""
        if self.writer.failure is not None:
            self.write(lambda tx: tx.run("UPDATE meta SET value = value WHERE key = 'incarnation'"))

    def check_disk(self) -> None:
        """Refuse new work before SQLite would fail. Raises RaeError `disk_low`."""
        free = shutil.disk_usage(self.data).free
        if free < self.config.low_water_bytes:
            raise RaeError("disk_low", f"{free // 2**20} MiB are free", retry_after_s=30)

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
            until = now + row["lease_ttl_s"]
            self.fences[row["fence"]] = Fence(until, row["node_id"], row["task_id"])
        for row in self.ledger.read(views.backlog):
            self.backlog[row["submitter"]] = [row["tasks"], row["bytes"]]
        for row in self.ledger.read(views.lane_sizes):
            self.lane_sizes[row["lane_id"]] = row["tasks"]
            self.lanes_of[row["submitter"]] += 1
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

    def cordon(self, node_id: str, reason: str) -> None:
        """Give a node nothing more, and say why."""
        node = self.nodes.get(node_id)
        if node is not None and node.cordoned is None:
            self.write(partial(ledger_nodes.cordon, node_id=node_id, reason=reason))
            log.warning("node_cordoned", extra=facts(node_id, reason=reason))

    def another(self, requirements: str, without: Collection[str], *, now: bool) -> bool:
        """Whether an online node that is not among those fits these needs (JSON).

        `now`: it takes work at this moment. Also for the writer's thread: no row of a node changes
        while a transaction runs.
        """
        needs = json.loads(requirements)
        wanted = self.nodes.wanted(needs)
        if len(wanted) < len(needs) and not now:
            return False  # no node has such a program: one refusal is enough
        return self.nodes.another(wanted, without, now=now)

    def keep_hold(self) -> None:
        """Note now and then how much of a restore's hold has passed: a reboot must not undo it."""
        now = self.clock.boot()
        if self.hold is not None and now - self._hold_kept["boot"] >= KEPT_EVERY_S:
            self._hold_kept = ledger_hold.moved_on(self._hold_kept, self.clock.wall(), now)
            self.write(partial(ledger_hold.keep, hold=self._hold_kept))

    def follow_clock(self) -> None:
        """Look at both clocks. Pauses keep what is left of them, whatever was set."""
        wall, boot, steady = self.clock.wall(), self.clock.boot(), self.ledger.steady
        step = steady.look(wall, boot)
        if step or boot - self._clock_kept >= KEPT_EVERY_S:
            longest = max(self.limits.backoff_max_s, self.limits.pause_max_s)
            kept, self._clock_kept = steady.keep(boot), boot

            def follow(tx: Tx) -> None:
                keep_clock(tx, kept)
                if step:
                    shift_pauses(tx, step, longest)

            self.write(follow)

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

    def _changed(self, changes: Changes) -> None:
        """Memory follows a commit. Runs between commits, so it must not block."""
        now = self.clock.boot()
        for row in changes.nodes:
            if row["revoked"]:
                self.health.forget(row["node_id"])
            self.follow_node(self.nodes.update(row, now))
        for row in changes.tokens:
            self.follow_token(row)
        for move in changes.moved:
            self.metrics.moved(move, self.leases.get(move.lease_id or ""), now)
            self._count(move)
            self._follow_lease(move)
            self._follow_health(move)
            self.follow_task(move)
            self.signals.tell(move.task["task_id"])
        for submitter in {None, *changes.events} if changes.events else ():
            self.signals.tell(events_of(submitter))
        for lease_id in changes.unfenced:
            self.fences.pop(lease_id, None)
        if queued := [move for move in changes.moved if move.new == "queued"]:
            self.follow_queued(queued)

    def _count(self, move: Moved) -> None:
        task, lane_id = move.task, move.task["lane_id"]
        self.states[move.new] += 1
        if move.old is not None:
            self.states[move.old] -= 1
        entry = self.backlog[task["submitter"]]
        delta = (move.new in {"waiting", "queued"}) - (move.old in {"waiting", "queued"})
        entry[0] += delta
        entry[1] += delta * task["spec_bytes"]
        if delta:
            was = self.lane_sizes.get(lane_id, 0)
            self.lane_sizes[lane_id] = was + delta
            self.lanes_of[task["submitter"]] += (was + delta > 0) - (was > 0)
            if was + delta <= 0:
                del self.lane_sizes[lane_id]
        if move.old == "queued":
            self.lanes.remove(lane_id, move.lane_oldest)
        if move.new == "queued":
            self.lanes.add(lane_id, task["seq"], move.requirements)

    def _follow_health(self, move: Moved) -> None:
        if move.old not in LIVE or move.node_id is None:
            return
        ok, task = move.new == "succeeded", move.task
        if ok or speaks_of_node(str(task["reason"])):
            node = self.nodes.get(move.node_id)
            by = Reporter(move.node_id)
            if node is not None:
                by = Reporter(move.node_id, node.machine, node.trusted)
            self.health.ended(by, task["task_id"], move.lane_before, ok=ok)

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
                until = now + lease.ttl_s
                self.fences[lease.lease_id] = Fence(until, lease.node_id, lease.task_id)


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
