"""Nodes: register, heartbeat, goodbye; and what operators do with them."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from flask import request as flask_request

from rae_control import wire
from rae_control.auth.authenticator import Caller
from rae_control.auth.tailscale_whois import check_peer
from rae_control.ledger import nodes as ledger_nodes
from rae_control.node_table import NodeEntry
from rae_control.service import nodes as service
from rae_protocol import models
from rae_protocol.errors import RaeError

if TYPE_CHECKING:
    from rae_control.mesh.mesh import Mesh


def register(mesh: Mesh, read_body: Callable[[], wire.Body]) -> models.Model:
    """A node introduces itself."""
    # The headers, then the secret over the raw bytes; only then is anything parsed.
    applicant = mesh.auth.applicant(flask_request.headers.get("Authorization"))
    body = read_body()
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
    return service.register(mesh, entry, request, flask_request.remote_addr)


def heartbeat(mesh: Mesh, entry: NodeEntry, beat: models.Heartbeat) -> models.Model:
    """A node is alive."""
    now = mesh.clock.boot()
    _same_node(entry, beat.node_id)
    return service.heartbeat(mesh, entry, beat, now)


def goodbye(mesh: Mesh, entry: NodeEntry, request: models.Goodbye) -> models.Model:
    """A node leaves; its work is dead."""
    _same_node(entry, request.node_id)
    return service.view(mesh, service.goodbye(mesh, entry))


def list_nodes(mesh: Mesh, _caller: Caller, values: wire.Query) -> models.Model:
    """Online nodes, or all."""
    nodes = [service.view(mesh, n) for n in mesh.nodes if values.get("all") or n.online]
    return models.NodeList(nodes=sorted(nodes, key=lambda n: n.node_id))


def enrol(mesh: Mesh, _caller: Caller, request: models.EnrolRequest) -> models.Model:
    """Admit a node."""
    node_id, kind, trusted = request.node_id, request.kind, request.trusted
    mesh.write(partial(ledger_nodes.enrol, node_id=node_id, kind=kind, trusted=trusted))
    entry = service.known(mesh, node_id)
    return models.Enrolled(
        node_id=entry.node_id,
        kind=kind,
        trusted=trusted,
        enrolment_secret=mesh.auth.secret(entry.node_id, entry.epoch),
        control_public_keys=mesh.auth.public_keys,
    )


def one_node(mesh: Mesh, _caller: Caller, node_id: str) -> models.Model:
    """One node."""
    return service.view(mesh, service.known(mesh, node_id))


def node_verb(
    mesh: Mesh, _caller: Caller, note: models.OperatorNote, node_id: str, verb: str
) -> models.Model:
    """Operate a node."""
    service.known(mesh, node_id)
    return service.view(mesh, service.operate(mesh, node_id, verb, note.reason))


def _same_node(entry: NodeEntry, node_id: str) -> None:
    if entry.node_id != node_id:
        raise RaeError("wrong_node", f"this is the token or secret of {entry.node_id}")
