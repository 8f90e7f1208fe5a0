"""Nodes: register, heartbeat, goodbye; and what operators do with them."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from flask import Blueprint, Response
from flask import request as flask_request

from rae_control import wire
from rae_control.auth.tailscale_whois import check_peer
from rae_control.ledger import nodes as ledger_nodes
from rae_control.node_table import NodeEntry
from rae_control.service import nodes as service
from rae_protocol import models
from rae_protocol.errors import RaeError
from rae_protocol.names import MAX_JSON_BYTES, MAX_REGISTER_BYTES

if TYPE_CHECKING:
    from rae_control.mesh.mesh import Mesh


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
        return wire.answer(service.register(mesh, entry, request, flask_request.remote_addr))

    @bp.post("/nodes/heartbeat")
    def heartbeat() -> Response:
        entry, body = wire.node_call(mesh, each=1024)
        now = mesh.clock.boot()
        beat = wire.parse_json(models.Heartbeat, body)
        _same_node(entry, beat.node_id)
        return wire.answer(service.heartbeat(mesh, entry, beat, now))

    @bp.post("/nodes/goodbye")
    def goodbye() -> Response:
        entry, body = wire.node_call(mesh)
        request = wire.parse_json(models.Goodbye, body)
        _same_node(entry, request.node_id)
        return wire.answer(service.view(mesh, service.goodbye(mesh, entry)))

    @bp.get("/nodes")
    def list_nodes() -> Response:
        wire.role_call(mesh, "read")
        everything = bool(wire.query({"all": int}).get("all"))
        nodes = [service.view(mesh, n) for n in mesh.nodes if everything or n.online]
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
        entry = service.known(mesh, request.node_id)
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
        return wire.answer(service.view(mesh, service.known(mesh, node_id)))

    @bp.post("/nodes/<node_id>/<any(drain, resume, revoke):verb>")
    def node_verb(node_id: str, verb: str) -> Response:
        wire.role_call(mesh, "admin")
        body = wire.read_body(MAX_JSON_BYTES)
        note = wire.parse_json(models.OperatorNote, body, empty=True)
        service.known(mesh, node_id)
        return wire.answer(service.view(mesh, service.operate(mesh, node_id, verb, note.reason)))

    return bp


def _same_node(entry: NodeEntry, node_id: str) -> None:
    if entry.node_id != node_id:
        raise RaeError("wrong_node", f"this is the token or secret of {entry.node_id}")
