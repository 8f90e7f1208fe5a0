"""Time passes: leases expire, nodes fall silent, waiting tasks become due."""

from __future__ import annotations

import logging
from functools import partial
from typing import TYPE_CHECKING

import gevent

from rae_control.ledger import nodes as ledger_nodes
from rae_control.ledger import tasks as ledger_tasks
from rae_control.ledger.store import Row, Tx
from rae_protocol.errors import RaeError

if TYPE_CHECKING:
    from rae_control.mesh import Mesh

log = logging.getLogger(__name__)


class Reaper:
    """One look a second. Time in which this process did not run does not count (restart grace)."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh
        self._last = mesh.clock.boot()

    def run(self) -> None:
        """The greenlet's loop; ends with the process."""
        while True:
            gevent.sleep(self._mesh.config.reaper_interval_s)
            try:
                self.tick()
            except RaeError as error:
                # The ledger cannot write (disk full): the next look finds the same work again.
                log.error("reaper: %s", error)

    def tick(self) -> None:
        """Look once at everything that time may have ended."""
        mesh, now = self._mesh, self._mesh.clock.boot()
        gap = now - self._last - mesh.config.reaper_interval_s
        self._last = now
        # Stopped (SIGSTOP, a suspend, a starved machine): nobody could be heard in that time.
        if gap > max(2.0, 3 * mesh.config.reaper_interval_s):
            log.warning(
                "control did not run for %.1f s; leases and nodes are granted that time", gap
            )
            mesh.leases.grant(gap)
            for node in mesh.nodes:
                node.heard += gap
            return
        for lease in mesh.leases.unacked(now, mesh.config.ack_timeout_s):
            mesh.write(partial(ledger_tasks.unack, lease_id=lease.lease_id))
        for lease in mesh.leases.expired(now):
            mesh.write(
                partial(
                    ledger_tasks.interrupt, lease_id=lease.lease_id, reason="lease_expired",
                    limits=mesh.limits, fenced=False,
                )
            )  # fmt: skip
            mesh.dispatch.tell_cancel(lease, "lease_expired")
        self._silent_nodes(now)
        for lease_id in [fence for fence, until in mesh.fences.items() if now > until]:
            mesh.write(partial(ledger_tasks.clear_fence, lease_id=lease_id))
            mesh.fences.pop(lease_id, None)
        while mesh.write(ledger_tasks.due) >= 500:
            pass

    def _silent_nodes(self, now: float) -> None:
        mesh = self._mesh
        for node in mesh.nodes:
            if not node.online or now - node.heard <= mesh.config.heartbeat_timeout_s:
                continue
            seen = mesh.clock.wall() - (now - node.heard)
            row = mesh.write(partial(_offline, node_id=node.node_id, seen=seen))
            log.warning("node %s is offline: not heard for %.0f s", node.node_id, now - node.heard)
            mesh.node_changed(row)


def _offline(tx: Tx, node_id: str, seen: float) -> Row:
    ledger_nodes.offline(tx, node_id, "heartbeat_timeout", seen)
    return ledger_nodes.get(tx, node_id)
