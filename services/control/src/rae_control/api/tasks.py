"""RAE's side: submit, look, wait, cancel, requeue; logs, results, artifacts, events."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Response, request

from rae_control import wire
from rae_control.api.streams import streamed_json
from rae_control.api.work import send_blob
from rae_control.auth.authenticator import Caller
from rae_control.ledger import views
from rae_control.service import tasks as service
from rae_protocol import models
from rae_protocol.errors import RaeError
from rae_protocol.names import MAX_JSON_BYTES, TaskState

if TYPE_CHECKING:
    from rae_control.mesh.mesh import Mesh


def blueprint(mesh: Mesh) -> Blueprint:
    """The submitter's paths under /tasks, and /events."""
    bp = Blueprint("tasks", __name__)

    @bp.post("/tasks")
    def submit_tasks() -> Response:
        caller = wire.role_call(mesh, "submit")
        body = wire.read_body(MAX_JSON_BYTES)
        if request.mimetype != "application/json":
            raise RaeError("unsupported_media", f"Content-Type is {request.mimetype or 'missing'}")
        mesh.check_disk()
        return wire.answer(
            models.Submitted(tasks=service.submit_body(mesh, caller.name, body)), 201
        )

    @bp.get("/tasks")
    def list_tasks() -> Response:
        caller = wire.role_call(mesh, "read_own")
        values = wire.query(
            {"state": str, "kind": str, "label": str, "node": str, "submitter": str, "limit": int,
             "cursor": int}
        )  # fmt: skip
        filters = _filters(caller, values)
        limit = wire.limit(values, 100, views.LIST_LIMIT)
        before = int(values["cursor"]) if "cursor" in values else None
        page, after = service.page(wire.reads(mesh), filters, limit, before)
        cursor = None if after is None else str(after)
        return wire.answer(models.TaskList(tasks=page, next=cursor))

    @bp.get("/tasks/<task_id>")
    def one_task(task_id: str) -> Response:
        caller = wire.role_call(mesh, "read_own")
        values = wire.query({"wait": float, "state": str})
        read, state = wire.reads(mesh), _state(values)
        row = service.wait(mesh, read, caller, task_id, wire.wait_seconds(values), state)
        return streamed_json(service.detail(mesh, read, row))

    @bp.get("/tasks/<task_id>/events")
    def task_events(task_id: str) -> Response:
        caller = wire.role_call(mesh, "read_own")
        wire.reads(mesh)(lambda db: views.task_row(db, task_id, caller.sees))
        return _events(mesh, caller, task_id)

    @bp.get("/events")
    def events() -> Response:
        return _events(mesh, wire.role_call(mesh, "read_own"), None)

    @bp.get("/tasks/<task_id>/log")
    def log(task_id: str) -> Response:
        caller = wire.role_call(mesh, "read_own")
        values = wire.query({"attempt": int, "offset": int, "wait": float})
        return _log(mesh, caller, task_id, values)

    @bp.get("/tasks/<task_id>/result")
    def result(task_id: str) -> Response:
        caller = wire.role_call(mesh, "read_own")
        return streamed_json(service.result(mesh, wire.reads(mesh), caller, task_id))

    @bp.get("/tasks/<task_id>/artifacts/<path:name>")
    def artifact(task_id: str, name: str) -> Response:
        caller = wire.role_call(mesh, "read_own")
        read = wire.reads(mesh)
        read(lambda db: views.task_row(db, task_id, caller.sees))
        found = read(partial(views.artifact, task_id=task_id, name=name))
        return send_blob(mesh, found["sha256"], found["size"])

    @bp.post("/tasks/<task_id>/<any(cancel, requeue):verb>")
    def task_verb(task_id: str, verb: str) -> Response:
        caller = wire.role_call(mesh, "submit")
        body = wire.parse_json(models.CancelRequest, wire.read_body(MAX_JSON_BYTES), empty=True)
        read = wire.reads(mesh)
        read(lambda db: views.task_row(db, task_id, caller.sees))
        row = service.operate(mesh, read, caller, task_id, verb, body.reason)
        return streamed_json(service.detail(mesh, read, row))

    return bp


def _filters(caller: Caller, values: dict[str, Any]) -> dict[str, Any]:
    filters = {
        "kind": values.get("kind"),
        "node_id": values.get("node"),
        "label": values.get("label"),
    }
    state = _state(values)
    if filters["label"] is not None and "=" not in str(filters["label"]):
        raise RaeError("invalid_query", "'label' is name=value")
    asked = values.get("submitter")
    if caller.sees is not None and asked not in {None, caller.sees}:
        raise RaeError("forbidden", "this token sees only its own tasks", needs="read")
    return {**filters, "state": state, "submitter": caller.sees or asked}


def _state(values: dict[str, Any]) -> str | None:
    state = values.get("state")
    if state is not None and state not in {s.value for s in TaskState}:
        states = ", ".join(s.value for s in TaskState)
        raise RaeError("invalid_query", f"'state' is one of {states}")
    return state


def _events(mesh: Mesh, caller: Caller, task_id: str | None) -> Response:
    values = wire.query({"after": int, "wait": float, "limit": int, "incarnation": str})
    after, limit = int(values.get("after", 0)), wire.limit(values, 500, 1000)
    place = service.Place(after, limit, values.get("incarnation"))
    seconds = wire.wait_seconds(values)
    return wire.answer(service.events(mesh, wire.reads(mesh), caller, task_id, place, seconds))


def _log(mesh: Mesh, caller: Caller, task_id: str, values: dict[str, Any]) -> Response:
    offset, seconds = int(values.get("offset", 0)), wire.wait_seconds(values)
    attempt = values.get("attempt")
    piece = service.read_log(
        mesh, wire.reads(mesh), caller, task_id, attempt, offset, seconds
    )  # fmt: skip
    headers = {
        "X-RAE-Attempt": str(piece.attempt),
        "X-RAE-Next-Offset": str(offset + len(piece.data)),
        "X-RAE-Complete": "1" if piece.ended and not piece.data else "0",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(piece.data, 200, headers, mimetype="text/plain")
