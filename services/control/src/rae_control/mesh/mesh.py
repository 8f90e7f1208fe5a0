"""The control process put together: state, queue, dispatcher, reaper."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

import gevent
from prometheus_client import CollectorRegistry

from rae_control.auth.authenticator import Authenticator, Skew
from rae_control.config import ControlConfig
from rae_control.core.takeovers import Takeovers
from rae_control.ledger import views
from rae_control.ledger.base import Moved, Row
from rae_control.ledger.tasks import LIVE
from rae_control.log import facts
from rae_control.mesh.dispatcher import Dispatcher
from rae_control.mesh.metrics import MeshCollector, Metrics
from rae_control.mesh.reaper import Reaper
from rae_control.mesh.retention import Retention
from rae_control.mesh.state import State
from rae_control.node_table import NodeEntry
from rae_control.queue.keeper import QueueKeeper
from rae_control.queue.rq_queue import Op, RqQueue
from rae_protocol.clock import Clock

log = logging.getLogger(__name__)


class Mesh(State):
    """Everything behind the HTTP API. One per process."""

    def __init__(
        self, data: Path, config: ControlConfig, clock: Clock, queue: RqQueue, roots: list[bytes],
        registry: CollectorRegistry | None = None, end: Callable[[int], None] = os._exit,
    ) -> None:  # fmt: skip
        super().__init__(data, config, clock, Metrics(registry or CollectorRegistry()))
        tokens = self.ledger.read(lambda db: views.all_rows(db, "tokens"))
        # Where no node ever registered there is nothing to repeat.
        was_here = any(node.info is not None for node in self.nodes)
        before = self.ledger.steady.believed(clock.boot()) if was_here else None
        skew = Skew(config.skew_s, config.skew_ahead_s)
        self.auth = Authenticator(roots, self.nodes, tokens, clock, skew, before)
        self.keeper = QueueKeeper(
            queue, self.readers, self.lanes, self.leases, slots=self._slots,
            clock=clock, interval_s=config.reconcile_interval_s,
        )  # fmt: skip
        self.dispatch = Dispatcher(self, self.auth.signer)
        self.reaper = Reaper(self, self.dispatch.tell_cancel)
        self.takeovers = Takeovers()
        self.metrics.registry.register(MeshCollector(self))
        self.retention = Retention(self, self.states.subtract)
        loops = (self.keeper.run, self.reaper.run, self.retention.run)
        log.info(
            "control_started", extra=facts(incarnation=self.ledger.incarnation, pid=os.getpid())
        )
        self._end = end
        self._greenlets = [gevent.spawn(loop) for loop in loops]
        for greenlet in self._greenlets:
            greenlet.link(self._ended)

    def stopping(self) -> None:
        """Answer all waiting requests; none waits from now on."""
        self.signals.stop()
        self.dispatch.stop()

    def close(self) -> None:
        """Stop the greenlets, finish pending writes, let another process in."""
        gevent.killall(self._greenlets)
        super().close()
        self.keeper.queue.close()
        log.info("control_stopped", extra=facts(pid=os.getpid()))

    def _ended(self, greenlet: gevent.Greenlet) -> None:
        # A control without its keeper looks well and gives no work: a fresh start is better.
        if not isinstance(greenlet.value, gevent.GreenletExit):
            log.critical("loop_ended", exc_info=greenlet.exception, extra=facts())
            self._end(70)

    def follow_task(self, move: Moved) -> None:
        """The queue follows."""
        self.keeper.add(self._ops(move))

    def follow_queued(self, moves: Sequence[Moved]) -> None:
        """Polls look again."""
        self.dispatch.wake_for(moves)

    def follow_node(self, entry: NodeEntry) -> None:
        """Who may register and the worker entries follow, and the open poll looks again."""
        self.auth.learn_node(entry)
        self.keeper.slots_changed()
        entry.wake()

    def follow_token(self, row: Row) -> None:
        """Who may call follows."""
        self.auth.learn_token(row)

    def _slots(self) -> list[str]:
        return [f"{n.node_id}.{slot}" for n in self.nodes if n.online for slot in n.facts.slots]

    def _ops(self, move: Moved) -> list[Op]:
        task_id, lane_id = move.task["task_id"], move.task["lane_id"]
        worker = f"{move.node_id}.{move.slot}" if move.node_id else ""
        ops = []
        before = move.lane_before
        if move.old == "queued":
            verb = "leave" if move.new == "leased" else "drop"
            ops.append(Op(verb, task_id, lane_id, move.event))
        if move.new == "leased":
            ops.append(Op("start", task_id, lane_id, move.event, worker=worker))
        elif move.old in LIVE and move.new not in LIVE:
            ops.append(Op("finish", task_id, before, move.event, worker=worker))
        if move.new == "queued":
            lane = self.lanes.lanes[lane_id]
            first = lane.oldest == move.task["seq"]
            # A task that comes back, or becomes due, keeps its place before younger ones.
            late = move.old is not None and lane.queued > 1
            place: Literal["front", "middle", "back"] = "middle" if late else "back"
            ops.append(Op("push", task_id, lane_id, move.event, place="front" if first else place))
        return ops
