"""Blobs, tokens and health."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from flask import Response
from flask import request as flask_request

from rae_control import wire
from rae_control.api.work import send_blob
from rae_control.auth.authenticator import Caller
from rae_control.ledger import blobs, views
from rae_control.ledger import nodes as ledger_nodes
from rae_control.ledger.base import Row
from rae_control.mesh.metrics import CONTENT_TYPE
from rae_protocol import models
from rae_protocol.errors import RaeError
from rae_protocol.names import MAX_BLOB_BYTES

if TYPE_CHECKING:
    from rae_control.mesh.mesh import Mesh


def put_blob(
    mesh: Mesh, caller: Caller, read_body: Callable[[], wire.Body], sha256: str
) -> Response:
    """Upload a blob."""
    if not wire.is_sha256(sha256):
        raise RaeError("blob_mismatch", "a blob is named by 64 lower-case hex digits")
    mesh.check_disk()
    most, size = mesh.config.max_blob_bytes, flask_request.content_length or 0
    read = wire.reads(mesh)
    if not read(partial(blobs.known, sha256=sha256, submitter=caller.name)):
        read(partial(blobs.refuse_more, submitter=caller.name, size=size, most=most))
    body = read_body()
    if body.sha256 != sha256:
        raise RaeError("blob_mismatch", f"the bytes hash to {body.sha256}")
    keep = partial(blobs.keep, sha256=sha256, submitter=caller.name, size=body.size, most=most)
    with mesh.storing([sha256]):
        mesh.blobs.add(body.stream, MAX_BLOB_BYTES, sha256)
        created = mesh.write(keep)
    stored = models.BlobStored(sha256=sha256, size=body.size)
    return wire.answer(stored, 201 if created else 200)


def get_blob(mesh: Mesh, caller: Caller, sha256: str) -> Response:
    """A blob's bytes; HEAD asks whether it is there."""
    read = partial(blobs.uploaded, sha256=sha256, submitter=caller.name)
    found = wire.reads(mesh)(read)
    # The caller may refer to it now: its time starts again, but not at each look.
    old = found["created_at"] < mesh.ledger.earliest() - mesh.config.blob_grace_s / 2
    if old and not mesh.write(lambda tx: blobs.renew(tx, sha256, caller.name)):
        raise RaeError("unknown_blob", f"there is no blob {sha256}")
    return send_blob(mesh, sha256, found["size"])


def add_token(mesh: Mesh, _caller: Caller, request: models.TokenRequest) -> models.Model:
    """Make a token; its text is in this answer only."""
    row, text = mesh.write(partial(ledger_nodes.add_token, name=request.name, role=request.role))
    return _token(row).model_copy(update={"token": text})


def list_tokens(mesh: Mesh, _caller: Caller) -> models.Model:
    """All tokens, without their texts."""
    rows = wire.reads(mesh)(lambda db: views.all_rows(db, "tokens"))
    return models.TokenList(tokens=[_token(row) for row in rows])


def revoke_token(
    mesh: Mesh, _caller: Caller, _note: models.OperatorNote, name_or_id: str
) -> models.Model:
    """End a token."""
    return _token(mesh.write(partial(ledger_nodes.revoke_token, name_or_id=name_or_id)))


def healthz(_mesh: Mesh) -> models.Model:
    """Does the process answer?"""
    return models.Health(status="ok")


def readyz(mesh: Mesh) -> models.Model:
    """Can it take submits: is there room for them?

    Anybody may ask, so asking writes nothing.
    """
    mesh.check_disk()
    mesh.check_commits()
    return models.Ready(
        status="ok",
        ledger="ok",
        queue="ok" if mesh.keeper.available else "unavailable",
        incarnation=mesh.ledger.incarnation,
        nodes_online=sum(node.online for node in mesh.nodes),
        open_polls=mesh.dispatch.open_polls,
        held=mesh.held(),
    )


def metrics(mesh: Mesh, _caller: Caller) -> Response:
    """For Prometheus, text format 0.0.4."""
    return Response(mesh.metrics.text(), content_type=CONTENT_TYPE)


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
