"""The control process put together: state, queue, dispatcher, reaper."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable
from pathlib import Path

import gevent
from prometheus_client import CollectorRegistry

from rae_control.auth import Authenticator
from rae_control.config import ControlConfig
from rae_control.dispatch import Dispatcher
from rae_control.ledger import views
from rae_control.ledger.store import Moved
from rae_control.ledger.tasks import LIVE
from rae_control.log import facts
from rae_control.metrics import MeshCollector, Metrics
from rae_control.queue import Op, RqQueue
from rae_control.reaper import Reaper
from rae_control.reconcile import QueueKeeper
from rae_control.retention import Retention
from rae_control.state import State
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
        self.auth = Authenticator(roots, self.nodes, tokens, clock, config.skew_s)
        self.keeper = QueueKeeper(
            queue, self.writer, self.lanes, self.leases, slots=self._slots,
            pushed=self._pushed,
            clock=clock, interval_s=config.reconcile_interval_s,
        )  # fmt: skip
        self.dispatch = Dispatcher(self, self.keeper, self.auth.signer)
        self.reaper = Reaper(self, self.dispatch.tell_cancel)
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
        """Answer all who wait for something; nobody waits from now on."""
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

    def follow_node(self) -> None:
        """The worker entries follow."""
        self.keeper.slots_changed()

    def _pushed(self, counts: dict[str, int]) -> None:
        self.dispatch.wake_for(counts)

    def _slots(self) -> list[str]:
        return [f"{n.node_id}.{slot}" for n in self.nodes if n.online for slot in n.facts.slots]

    def _ops(self, move: Moved) -> list[Op]:
        task_id, lane_id = move.task["task_id"], move.task["lane_id"]
        worker = f"{move.node_id}.{move.slot}" if move.node_id else ""
        if move.new == "leased":
            return [Op("start", task_id, lane_id, worker=worker)]
        ops = []
        if move.old in LIVE and move.new not in LIVE:
            ops.append(Op("finish", task_id, lane_id, worker=worker))
        elif move.old == "queued":
            ops.append(Op("drop", task_id, lane_id))
        if move.new == "queued":
            lane = self.lanes.lanes.get(lane_id)
            first = lane is not None and lane.oldest == move.task["seq"] and lane.queued > 1
            ops.append(Op("push", task_id, lane_id, front=first))
        return ops
