"""Nodes: register, heartbeat, goodbye; and what operators do with them."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING

from flask import Blueprint, Response
from flask import request as flask_request

from rae_control import wire
from rae_control.auth.tailscale_whois import check_peer
from rae_control.core.retries import SHARED_MACHINE, Limits
from rae_control.ledger import nodes as ledger_nodes
from rae_control.ledger import views
from rae_control.ledger.sqlite import Row, Tx
from rae_control.log import facts
from rae_control.node_table import NodeEntry, info_json
from rae_control.service import takeover
from rae_protocol import models
from rae_protocol.errors import RaeError
from rae_protocol.names import MAX_JSON_BYTES, MAX_REGISTER_BYTES

if TYPE_CHECKING:
    from rae_control.mesh.mesh import Mesh

# Beyond its slots: leases of results that wait in its spool, and of slots that it has no more.
MORE_LEASES = 64
log = logging.getLogger(__name__)


def blueprint(mesh: Mesh) -> Blueprint:
    """The paths under /nodes."""
    bp = Blueprint("nodes", __name__)

    @bp.post("/nodes/register")
    def register() -> Response:
        # The headers, then the secret over the raw bytes; only then is anything parsed.
        applicant = mesh.auth.applicant(flask_request.headers.get("Authorization"))
        body = wire.read_body(MAX_REGISTER_BYTES)
        entry = mesh.auth.registering(applicant, wire.signed(body))
        wire.registered(entry.node_id)
        if wait := entry.registrations.take(mesh.clock.boot()):
            raise RaeError("rate_limited", f"node {entry.node_id} registers too often",
                           retry_after_s=wait)  # fmt: skip
        request = wire.parse_json(models.RegisterRequest, body)
        _same_node(entry, request.node_id)
        # After the secret: strangers have nothing looked up. Before anything changes.
        port = flask_request.environ.get("REMOTE_PORT")
        check_peer(mesh.config, entry.node_id, flask_request.remote_addr, port)
        return wire.answer(_register(mesh, entry, request))

    @bp.post("/nodes/heartbeat")
    def heartbeat() -> Response:
        entry, body = wire.node_call(mesh, each=1024)
        now = mesh.clock.boot()
        beat = wire.parse_json(models.Heartbeat, body)
        _same_node(entry, beat.node_id)
        most = len(entry.facts.slots) + MORE_LEASES
        if beat.leases is not None and len(beat.leases) > most:
            cause = f"leases: {len(beat.leases)} are named; a node with these slots has {most}"
            raise RaeError("invalid_body", f"{cause} at most")
        if not entry.online:
            raise RaeError("register_again", f"node {entry.node_id} is offline")
        return wire.answer(_heartbeat(mesh, entry, beat, now))

    @bp.post("/nodes/goodbye")
    def goodbye() -> Response:
        entry, body = wire.node_call(mesh)
        request = wire.parse_json(models.Goodbye, body)
        _same_node(entry, request.node_id)
        done = partial(_goodbye, entry=entry, limits=mesh.limits, seen=mesh.clock.wall())
        if mesh.write(done) and mesh.hold is not None:
            mesh.hold.confirm(entry.node_id, entry.machine)  # nothing of any past runs there
        return wire.answer(node_view(mesh, _known(mesh, entry.node_id)))

    @bp.get("/nodes")
    def list_nodes() -> Response:
        wire.role_call(mesh, "read")
        everything = bool(wire.query({"all": int}).get("all"))
        nodes = [node_view(mesh, n) for n in mesh.nodes if everything or n.online]
        return wire.answer(models.NodeList(nodes=sorted(nodes, key=lambda n: n.node_id)))

    @bp.post("/nodes/enrol")
    def enrol() -> Response:
        wire.role_call(mesh, "admin")
        request = wire.parse_json(models.EnrolRequest, wire.read_body(MAX_JSON_BYTES))
        mesh.write(
            partial(
                ledger_nodes.enrol,
                node_id=request.node_id,
                kind=request.kind,
                trusted=request.trusted,
            )
        )
        entry = _known(mesh, request.node_id)
        return wire.answer(
            models.Enrolled(
                node_id=entry.node_id,
                kind=request.kind,
                trusted=request.trusted,
                enrolment_secret=mesh.auth.secret(entry.node_id, entry.epoch),
                control_public_keys=mesh.auth.public_keys,
            ),
            201,
        )

    @bp.get("/nodes/<node_id>")
    def one_node(node_id: str) -> Response:
        wire.role_call(mesh, "read")
        return wire.answer(node_view(mesh, _known(mesh, node_id)))

    @bp.post("/nodes/<node_id>/<any(drain, resume, revoke):verb>")
    def node_verb(node_id: str, verb: str) -> Response:
        wire.role_call(mesh, "admin")
        body = wire.read_body(MAX_JSON_BYTES)
        note = wire.parse_json(models.OperatorNote, body, empty=True)
        _known(mesh, node_id)
        return wire.answer(node_view(mesh, _operate(mesh, node_id, verb, note.reason)))

    return bp


def node_view(mesh: Mesh, entry: NodeEntry) -> models.NodeView:
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


def _register(mesh: Mesh, entry: NodeEntry, request: models.RegisterRequest) -> models.Registered:
    now = mesh.clock.boot()
    other = request.machine != entry.machine
    heard = entry.online and now - entry.heard <= mesh.config.heartbeat_timeout_s
    if heard and other:
        age = round(now - entry.heard)
        raise RaeError(
            "node_id_in_use", f"{entry.node_id} was heard {age} s ago on another machine"
        )
    token = secrets.token_urlsafe(32)
    doubted = mesh.takeovers.suspects(entry.node_id, request.machine, request.instance, now)
    row = mesh.write(
        partial(
            _registered, request=request, token=token, expires_in=mesh.config.node_token_ttl_s,
            limits=mesh.limits, doubted=doubted,
        )
    )  # fmt: skip
    takeover.registered(mesh, row, flask_request.remote_addr)
    log.info("node_registered", extra=facts(request.node_id, version=request.version))
    another = request.instance is None or request.instance != entry.instance
    fresh = _known(mesh, request.node_id)
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


def _registered(
    tx: Tx, request: models.RegisterRequest, token: str, expires_in: float, limits: Limits,
    *, doubted: bool,
) -> Row:  # fmt: skip
    row = ledger_nodes.register(
        tx, request.node_id, token_sha256=ledger_nodes.sha256(token), expires=tx.now + expires_in,
        machine=request.machine, instance=request.instance, info=info_json(request),
    )  # fmt: skip
    # On the same machine every process of an earlier agent is dead by now, except what it lists.
    # A client that names no machine proves nothing: its open leases run out by themselves. Neither
    # does one of two machines that seem to have the same name.
    node_id, machine = request.node_id, request.machine
    alive = {ref.lease_id for ref in request.unfinished}
    ledger_nodes.close_leases(
        tx, node_id, SHARED_MACHINE if doubted else "node_restarted", limits,
        dead_on=machine or ledger_nodes.holder_of(tx, node_id), keep=alive,
        spare_sessions=machine is None, doubted=doubted,
    )  # fmt: skip
    if machine is not None and not doubted:
        ledger_nodes.clear_fences_of(tx, node_id, machine, keep=alive)
    return row


def _heartbeat(
    mesh: Mesh, entry: NodeEntry, beat: models.Heartbeat, now: float
) -> models.HeartbeatAnswer:
    entry.heard = entry.received = now
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


def _goodbye(tx: Tx, entry: NodeEntry, limits: Limits, seen: float) -> bool:
    """False when a newer session began meanwhile, maybe on another machine."""
    node_id, row = entry.node_id, ledger_nodes.get(tx, entry.node_id)
    if row["token_sha256"] != entry.token_sha256:
        return False
    holder = ledger_nodes.holder_of(tx, node_id)
    if holder is not None:
        ledger_nodes.close_leases(tx, node_id, "goodbye", limits, dead_on=holder)
        ledger_nodes.clear_fences_of(tx, node_id, holder)
    ledger_nodes.offline(tx, node_id, "goodbye", seen)
    return True


def _operate(mesh: Mesh, node_id: str, verb: str, reason: str | None) -> NodeEntry:
    if verb == "revoke":

        def revoke(tx: Tx) -> Row:
            # The desktop may be in a thief's hands, still working: its tasks wait out their leases.
            ledger_nodes.close_leases(tx, node_id, "revoked", mesh.limits, dead_on=None)
            return ledger_nodes.revoke(tx, node_id, reason)

        mesh.write(revoke)
        return _known(mesh, node_id)
    wanted = (reason or "by the operator") if verb == "drain" else None
    mesh.write(partial(ledger_nodes.set_draining, node_id=node_id, reason=wanted))
    if verb == "resume":
        mesh.health.forget(node_id)
    entry = _known(mesh, node_id)
    log.info(f"node_{verb}", extra=facts(node_id, reason=reason))
    entry.order(models.Command.model_validate({"command": verb, "reason": reason}))
    return entry


def _known(mesh: Mesh, node_id: str) -> NodeEntry:
    entry = mesh.nodes.get(node_id)
    if entry is None:
        raise RaeError("unknown_node", f"there is no node {node_id[:64]}")
    return entry


def _same_node(entry: NodeEntry, node_id: str) -> None:
    if entry.node_id != node_id:
        raise RaeError("wrong_node", f"this is the token or secret of {entry.node_id}")
