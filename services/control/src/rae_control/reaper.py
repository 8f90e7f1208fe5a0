"""Time passes: leases expire, nodes fall silent, waiting tasks become due."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial

import gevent

from rae_control.core.leases import Lease
from rae_control.ledger import nodes as ledger_nodes
from rae_control.ledger import tasks as ledger_tasks
from rae_control.ledger.store import Row, Tx
from rae_control.log import facts
from rae_control.state import State
from rae_protocol.errors import RaeError

log = logging.getLogger(__name__)


class Reaper:
    """One look a second. Time in which this process did not run does not count (restart grace)."""

    def __init__(self, state: State, tell_cancel: Callable[[Lease, str], None]) -> None:
        self._state, self._tell_cancel = state, tell_cancel
        self._last = state.clock.boot()

    def run(self) -> None:
        """The greenlet's loop; ends with the process."""
        while True:
            gevent.sleep(self._state.config.reaper_interval_s)
            try:
                self.tick()
            except RaeError as error:
                # The ledger cannot write (disk full): the next look finds the same work again.
                log.error("reaper_failed", extra=facts(error=str(error)))

    def tick(self) -> None:
        """Look once at everything that time may have ended."""
        state, now = self._state, self._state.clock.boot()
        gap = now - self._last - state.config.reaper_interval_s
        self._last = now
        # Stopped (SIGSTOP, a suspend, a starved machine): nobody could be heard in that time.
        if gap > max(2.0, 3 * state.config.reaper_interval_s):
            log.warning("control_was_stopped", extra=facts(seconds_granted=round(gap, 1)))
            state.leases.grant(gap)
            for node in state.nodes:
                node.heard += gap
            return
        for lease in state.leases.unacked(now, state.config.ack_timeout_s):
            state.write(partial(ledger_tasks.unack, lease_id=lease.lease_id))
        for lease in state.leases.end_expired(now):
            # In silence the node kept its own, earlier deadline. A node that goes on sending
            # heartbeats without a list never said that this lease is over.
            holder = state.nodes.get(lease.node_id)
            unconfirmed = not lease.named and holder is not None and holder.heard > lease.renewed
            state.write(
                partial(
                    ledger_tasks.interrupt, lease_id=lease.lease_id, reason="lease_expired",
                    limits=state.limits, fenced=unconfirmed,
                )
            )  # fmt: skip
            log.warning(
                "lease_expired", extra=facts(lease.node_id, lease.task_id, attempt=lease.attempt)
            )
            self._tell_cancel(lease, "lease_expired")
        self._silent_nodes(now)
        for lease_id in [fence for fence, until in state.fences.items() if now > until]:
            state.write(partial(ledger_tasks.clear_fence, lease_id=lease_id))
            state.fences.pop(lease_id, None)
        while state.write(ledger_tasks.due):
            pass
        if state.hold_over():
            log.info("hold_ended", extra=facts())
        state.keep_hold()

    def _silent_nodes(self, now: float) -> None:
        state = self._state
        for node in state.nodes:
            if not node.online or now - node.heard <= state.config.heartbeat_timeout_s:
                continue
            seen = state.clock.wall() - (now - node.heard)
            row = state.write(partial(_offline, node_id=node.node_id, seen=seen))
            log.warning("node_offline", extra=facts(node.node_id, silent_s=round(now - node.heard)))
            state.node_changed(row)


def _offline(tx: Tx, node_id: str, seen: float) -> Row:
    ledger_nodes.offline(tx, node_id, "heartbeat_timeout", seen)
    return ledger_nodes.get(tx, node_id)
