"""Blobs, tokens and health."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING

from flask import Blueprint, Response
from flask import request as flask_request

from rae_control import wire
from rae_control.api.openapi import document
from rae_control.api.work import send_blob
from rae_control.ledger import blobs, views
from rae_control.ledger import nodes as ledger_nodes
from rae_control.ledger.base import Row
from rae_control.mesh.metrics import CONTENT_TYPE
from rae_protocol import models
from rae_protocol.errors import RaeError
from rae_protocol.names import MAX_BLOB_BYTES, MAX_JSON_BYTES

if TYPE_CHECKING:
    from rae_control.mesh.mesh import Mesh


def blueprint(mesh: Mesh) -> Blueprint:
    """/blobs, /tokens, /healthz, /readyz."""
    bp = Blueprint("admin", __name__)

    @bp.put("/blobs/<sha256>")
    def put_blob(sha256: str) -> Response:
        caller = wire.role_call(mesh, "submit")
        if not wire.is_sha256(sha256):
            raise RaeError("blob_mismatch", "a blob is named by 64 lower-case hex digits")
        mesh.check_disk()
        most, size = mesh.config.max_blob_bytes, flask_request.content_length or 0
        read = wire.reads(mesh)
        if not read(partial(blobs.known, sha256=sha256, submitter=caller.name)):
            read(partial(blobs.refuse_more, submitter=caller.name, size=size, most=most))
        body = wire.read_body(MAX_BLOB_BYTES)
        if body.sha256 != sha256:
            raise RaeError("blob_mismatch", f"the bytes hash to {body.sha256}")
        keep = partial(blobs.keep, sha256=sha256, submitter=caller.name, size=body.size, most=most)
        with mesh.storing([sha256]):
            mesh.blobs.add(body.stream, MAX_BLOB_BYTES, sha256)
            created = mesh.write(keep)
        stored = models.BlobStored(sha256=sha256, size=body.size)
        return wire.answer(stored, 201 if created else 200)

    @bp.get("/blobs/<sha256>")
    def get_blob(sha256: str) -> Response:
        caller = wire.role_call(mesh, "submit")
        read = partial(blobs.uploaded, sha256=sha256, submitter=caller.name)
        found = wire.reads(mesh)(read)
        # The caller may refer to it now: its time starts again, but not at each look.
        old = found["created_at"] < mesh.ledger.earliest() - mesh.config.blob_grace_s / 2
        if old and not mesh.write(lambda tx: blobs.renew(tx, sha256, caller.name)):
            raise RaeError("unknown_blob", sha256)
        return send_blob(mesh, sha256, found["size"])

    @bp.post("/tokens")
    def add_token() -> Response:
        wire.role_call(mesh, "admin")
        request = wire.parse_json(models.TokenRequest, wire.read_body(MAX_JSON_BYTES))
        row, text = mesh.write(
            partial(ledger_nodes.add_token, name=request.name, role=request.role)
        )
        return wire.answer(_token(row).model_copy(update={"token": text}), 201)

    @bp.get("/tokens")
    def list_tokens() -> Response:
        wire.role_call(mesh, "admin")
        rows = wire.reads(mesh)(lambda db: views.all_rows(db, "tokens"))
        return wire.answer(models.TokenList(tokens=[_token(row) for row in rows]))

    @bp.post("/tokens/<name_or_id>/revoke")
    def revoke_token(name_or_id: str) -> Response:
        wire.role_call(mesh, "admin")
        wire.parse_json(models.OperatorNote, wire.read_body(MAX_JSON_BYTES), empty=True)
        row = mesh.write(partial(ledger_nodes.revoke_token, name_or_id=name_or_id))
        return wire.answer(_token(row))

    @bp.get("/healthz")
    def healthz() -> Response:
        return wire.answer(models.Health(status="ok"))

    @bp.get("/readyz")
    def readyz() -> Response:
        # What "ready" promises: there is room for submits, and the ledger takes commits. Anybody
        # may ask, so asking writes nothing.
        mesh.check_disk()
        mesh.check_commits()
        return wire.answer(
            models.Ready(
                status="ok",
                ledger="ok",
                queue="ok" if mesh.keeper.available else "unavailable",
                incarnation=mesh.ledger.incarnation,
                nodes_online=sum(node.online for node in mesh.nodes),
                open_polls=mesh.dispatch.open_polls,
                held=mesh.held(),
            )
        )

    @bp.get("/metrics")
    def metrics() -> Response:
        wire.role_call(mesh, "read")
        return Response(mesh.metrics.text(), content_type=CONTENT_TYPE)

    @bp.get("/openapi.json")
    def openapi() -> Response:
        return Response(document(), mimetype="application/json")

    return bp


def _token(row: Row) -> models.TokenView:
    return models.TokenView.model_validate(
        {
            "token_id": row["token_id"],
            "name": row["name"],
            "role": row["role"],
            "created_at": views.moment(row["created_at"]),
            "revoked_at": views.moment(row["revoked_at"]),
        }
    )
