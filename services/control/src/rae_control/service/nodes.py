"""Use cases of nodes: sessions, heartbeats, and what operators do with them."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from rae_control.ledger import nodes as ledger_nodes
from rae_control.ledger import sessions, views
from rae_control.ledger.base import Row, Tx
from rae_control.log import facts
from rae_control.node_table import NodeEntry, info_json
from rae_control.service import takeover
from rae_protocol import models
from rae_protocol.errors import RaeError

if TYPE_CHECKING:
    from rae_control.mesh.mesh import Mesh

# Beyond its slots: leases of results that wait in its spool, and of slots that it has no more.
MORE_LEASES = 64
log = logging.getLogger(__name__)


def register(
    mesh: Mesh, entry: NodeEntry, request: models.RegisterRequest, address: str | None
) -> models.Registered:
    """Begin a session; an earlier one of the node ends. Raises RaeError `node_id_in_use`."""
    now = mesh.clock.boot()
    other = request.machine != entry.machine
    alive = entry.online and now - entry.last_contact <= mesh.config.heartbeat_timeout_s
    if alive and other:
        age = round(now - entry.last_contact)
        raise RaeError("node_id_in_use", f"{entry.node_id} called {age} s ago from another machine")
    token = secrets.token_urlsafe(32)
    doubted = mesh.takeovers.suspects(entry.node_id, request.machine, request.instance, now)
    row = mesh.write(
        partial(
            sessions.begin, request=request, info=info_json(request), token=token,
            expires_in=mesh.config.node_token_ttl_s,
            limits=mesh.limits, doubted=doubted,
        )
    )  # fmt: skip
    takeover.registered(mesh, row, address)
    log.info("node_registered", extra=facts(request.node_id, version=request.version))
    another = request.instance is None or request.instance != entry.instance
    fresh = known(mesh, request.node_id)
    if another and request.machine is None and len(fresh.facts.slots) == 1:
        mesh.leases.forget(fresh.node_id, {ref.lease_id for ref in request.unfinished})
    # Listed as unfinished: open for one more ttl, so that the result can still come. What is over
    # is named at once: the node counts new deadlines from this answer.
    commands = _renew(mesh, request.node_id, request.unfinished, now)
    if row["draining"]:
        commands.append(models.Command(command="drain", reason=row["draining"]))
    return models.Registered(
        node_token=token,
        expires_in_s=mesh.config.node_token_ttl_s,
        incarnation=mesh.ledger.incarnation,
        wanted="work" if row["draining"] is None else "drain",
        commands=commands,
        **mesh.config.periods,
    )


def heartbeat(
    mesh: Mesh, entry: NodeEntry, beat: models.Heartbeat, now: float
) -> models.HeartbeatAnswer:
    """Renew the listed leases; answers with orders that the node may not have got."""
    most = len(entry.facts.slots) + MORE_LEASES
    if beat.leases is not None and len(beat.leases) > most:
        cause = f"leases: {len(beat.leases)} are named; a node with these slots has {most}"
        raise RaeError("invalid_body", f"{cause} at most")
    if not entry.online:
        raise RaeError("register_again", f"node {entry.node_id} is offline")
    entry.last_contact = entry.received = now
    opened = beat.availability is not None and beat.availability != entry.availability
    if beat.availability is not None:
        entry.availability = beat.availability
    if beat.reasons is not None:
        entry.reasons = list(beat.reasons)
    if mesh.hold is not None and beat.incarnation == mesh.ledger.incarnation:
        mesh.hold.confirm(entry.node_id, entry.machine)
    if beat.clock_offset_s is not None:
        entry.clock_offset_s = beat.clock_offset_s
    commands = {c.lease_id or c.command: c for c in entry.take_commands()}
    if beat.leases is None:
        mesh.leases.renew_all(entry.node_id, now)
        for command in mesh.dispatch.stops(entry.node_id):
            commands.setdefault(str(command.lease_id), command)
    else:
        for command in _renew(mesh, entry.node_id, beat.leases, now):
            commands.setdefault(str(command.lease_id), command)
    if opened:
        mesh.dispatch.wake_node(entry.node_id)
    return models.HeartbeatAnswer(
        commands=list(commands.values()),
        incarnation=mesh.ledger.incarnation,
        wanted=entry.wanted,
        **mesh.config.periods,
    )


def goodbye(mesh: Mesh, entry: NodeEntry) -> NodeEntry:
    """End the session, unless a newer one began meanwhile."""
    done = partial(
        sessions.end,
        node_id=entry.node_id,
        token_sha256=entry.token_sha256,
        limits=mesh.limits,
        seen=mesh.clock.wall(),
    )
    if mesh.write(done) and mesh.hold is not None:
        mesh.hold.confirm(entry.node_id, entry.machine)  # nothing of any past runs there
    return known(mesh, entry.node_id)


def operate(mesh: Mesh, node_id: str, verb: str, reason: str | None) -> NodeEntry:
    """Drain, resume or revoke a node."""
    if verb == "revoke":

        def revoke(tx: Tx) -> Row:
            # The desktop may be in a thief's hands, still working: its tasks wait out their leases.
            ledger_nodes.close_leases(tx, node_id, "revoked", mesh.limits, dead_on=None)
            return ledger_nodes.revoke(tx, node_id, reason)

        mesh.write(revoke)
        return known(mesh, node_id)
    wanted = (reason or "by the operator") if verb == "drain" else None
    mesh.write(partial(ledger_nodes.set_draining, node_id=node_id, reason=wanted))
    if verb == "resume":
        mesh.health.forget(node_id)
    entry = known(mesh, node_id)
    log.info(f"node_{verb}", extra=facts(node_id, reason=reason))
    entry.order(models.Command.model_validate({"command": verb, "reason": reason}))
    return entry


def known(mesh: Mesh, node_id: str) -> NodeEntry:
    """The node. Raises RaeError `unknown_node`."""
    entry = mesh.nodes.get(node_id)
    if entry is None:
        raise RaeError("unknown_node", f"there is no node {node_id[:64]}")
    return entry


def view(mesh: Mesh, entry: NodeEntry) -> models.NodeView:
    """A node as control tells it."""
    info = entry.info
    return models.NodeView.model_validate(
        {
            "node_id": entry.node_id,
            "state": entry.state,
            "availability": entry.availability if entry.online else None,
            "kind": entry.kind,
            "trusted": entry.trusted,
            "slots": list(entry.facts.slots) if info else [],
            "offered": mesh.dispatch.offered(entry),
            "running": [lease.task_id for lease in mesh.leases.of_node(entry.node_id)],
            "reason": entry.cordoned or entry.draining,
            "suspect": mesh.health.suspect(entry.node_id),
            "reasons": entry.reasons,
            "last_seen": views.moment(entry.seen(mesh.clock)),
            "version": info.version if info else None,
            "isolation": info.isolation if info else None,
            "clock_offset_s": entry.clock_offset_s,
            "capabilities": info.capabilities if info else models.Capabilities(),
        }
    )


def _renew(
    mesh: Mesh, node_id: str, leases: Sequence[models.LeaseRef], now: float
) -> list[models.Command]:
    """Renew the listed leases; those that are not open come back as orders to stop."""
    named = {ref.lease_id: ref for ref in leases}
    return [
        models.Command(
            command="cancel", task_id=named[lease_id].task_id, lease_id=lease_id,
            reason="the lease is not open any more",
        )
        for lease_id in mesh.leases.renew(named, node_id, now)
    ]  # fmt: skip
