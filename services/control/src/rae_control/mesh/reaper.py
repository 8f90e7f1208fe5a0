"""Time passes: leases expire, nodes fall silent, waiting tasks become due."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from functools import partial

import gevent

from rae_control.core.leases import Lease
from rae_control.core.steady import STEP_S
from rae_control.ledger import due, results
from rae_control.ledger import nodes as ledger_nodes
from rae_control.ledger import tasks as ledger_tasks
from rae_control.log import facts
from rae_control.mesh.state import State
from rae_protocol.errors import RaeError

log = logging.getLogger(__name__)
PIECES_S, PAUSE_S = 0.5, 0.01


class Reaper:
    """One look a second. Time in which this process did not run does not count (restart grace)."""

    def __init__(self, state: State, tell_cancel: Callable[[Lease, str], None]) -> None:
        self._state, self._tell_cancel = state, tell_cancel
        self._last, self._doubt = state.clock.boot(), 0.0

    def run(self) -> None:
        """The greenlet's loop; ends with the process."""
        more = False
        while True:
            gevent.sleep(PAUSE_S if more else self._state.config.reaper_interval_s)
            more = False
            try:
                more = self.tick()
            except RaeError as error:
                # The ledger cannot write (disk full): the next look finds the same work again.
                log.error("reaper_failed", extra=facts(error=str(error)))

    def tick(self) -> bool:
        """Look once at everything that time may have ended; returns whether there is more to do."""
        state, now = self._state, self._state.clock.boot()
        gap = now - self._last - state.config.reaper_interval_s
        self._last = now
        # Stopped (SIGSTOP, a suspend, a starved machine): no heartbeat could arrive in that time.
        if gap > max(2.0, 3 * state.config.reaper_interval_s):
            log.warning("control_was_stopped", extra=facts(seconds_granted=round(gap, 1)))
            state.leases.grant(gap)
            for node in state.nodes:
                node.last_contact += gap
            return True
        state.try_commit()
        state.follow_clock()
        self._warn_of_clock()
        for lease in state.leases.unacked(now, state.config.ack_timeout_s):
            state.write(partial(ledger_tasks.unack, lease_id=lease.lease_id, limits=state.limits))
        for lease in state.leases.end_expired(now):
            # In silence the node kept its own, earlier deadline. A node that goes on sending
            # heartbeats without a list never said that this lease is over.
            holder = state.nodes.get(lease.node_id)
            unconfirmed = (
                not lease.named and holder is not None and holder.last_contact > lease.renewed
            )
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
        for lease_id in [name for name, fence in state.fences.items() if now > fence.until]:
            state.write(partial(ledger_tasks.clear_fence, lease_id=lease_id))
        more = self._pieces()
        self._denied_everywhere()
        if state.hold_over():
            log.info("hold_ended", extra=facts())
        state.keep_hold()
        return more

    def _pieces(self) -> bool:
        """What may be very much is done bit by bit, and time is looked at in between."""
        state, end = self._state, self._state.clock.boot() + PIECES_S
        for work in (ledger_tasks.release, due.due):
            while state.write_some(work):
                if state.clock.boot() > end:
                    return True
        return False

    def _denied_everywhere(self) -> None:
        state = self._state
        for lane in list(state.lanes.lanes.values()):
            if "not_nodes" not in lane.requirements:
                continue
            needs = json.dumps(lane.requirements)
            if not state.another(needs, (), now=False):
                state.write(partial(results.fail_denied, lane_id=lane.lane_id, limit=100))

    def _warn_of_clock(self) -> None:
        doubt = self._state.ledger.steady.doubt_s
        if abs(doubt - self._doubt) > STEP_S:
            # What cannot be undone waits for this long, or until the clock is set right.
            waits = self._state.ledger.steady.settles_s if doubt else 0
            log.warning("clock_in_doubt", extra=facts(ahead_s=round(doubt, 1), waits_s=waits))
            self._doubt = doubt

    def _silent_nodes(self, now: float) -> None:
        state = self._state
        for node in state.nodes:
            if not node.online or now - node.last_contact <= state.config.heartbeat_timeout_s:
                continue
            seen = node.seen(state.clock)
            if seen is None:  # not since control's start: what the ledger has is the latest
                seen = node.last_seen or state.clock.wall() - (now - node.last_contact)
            state.write(
                partial(
                    ledger_nodes.offline, node_id=node.node_id, reason="heartbeat_timeout",
                    last_seen=seen,
                )
            )  # fmt: skip
            log.warning(
                "node_offline", extra=facts(node.node_id, silent_s=round(now - node.last_contact))
            )
