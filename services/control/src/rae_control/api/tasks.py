"""RAE's side: submit, look, wait, cancel, requeue; logs, results, artifacts, events."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from flask import Response, request

from rae_control import wire
from rae_control.api.streams import streamed_json
from rae_control.api.work import send_blob
from rae_control.auth.authenticator import Caller
from rae_control.ledger import views
from rae_control.service import tasks as service
from rae_protocol import models
from rae_protocol.errors import RaeError
from rae_protocol.names import TaskState

if TYPE_CHECKING:
    from rae_control.mesh.mesh import Mesh


def submit(mesh: Mesh, caller: Caller, body: wire.Body) -> models.Model:
    """Submit one task or several, all or none."""
    if request.mimetype != "application/json":
        raise RaeError("unsupported_media", f"Content-Type is {request.mimetype or 'missing'}")
    mesh.check_disk()
    return models.Submitted(tasks=service.submit_body(mesh, caller.name, body))


def list_tasks(mesh: Mesh, caller: Caller, values: wire.Query) -> models.Model:
    """A page of tasks, newest first."""
    filters = _filters(caller, values)
    limit = wire.limit(values, 100, views.LIST_LIMIT)
    before = int(values["cursor"]) if "cursor" in values else None
    page, after = service.page(wire.reads(mesh), filters, limit, before)
    return models.TaskList(tasks=page, next=None if after is None else str(after))


def one_task(mesh: Mesh, caller: Caller, values: wire.Query, task_id: str) -> Response:
    """One task, with why it does not run."""
    read, state = wire.reads(mesh), _state(values)
    row = service.wait(mesh, read, caller, task_id, wire.wait_seconds(values), state)
    return streamed_json(service.detail(mesh, read, row))


def task_events(mesh: Mesh, caller: Caller, values: wire.Query, task_id: str) -> models.Model:
    """A task's history."""
    wire.reads(mesh)(lambda db: views.task_row(db, task_id, caller.sees))
    return events(mesh, caller, values, task_id)


def events(
    mesh: Mesh, caller: Caller, values: wire.Query, task_id: str | None = None
) -> models.Model:
    """Every transition, oldest first."""
    after, limit = int(values.get("after", 0)), wire.limit(values, 500, 1000)
    incarnation = values.get("incarnation")
    place = service.Place(after, limit, None if incarnation is None else str(incarnation))
    seconds = wire.wait_seconds(values)
    return service.events(mesh, wire.reads(mesh), caller, task_id, place, seconds)


def log(mesh: Mesh, caller: Caller, values: wire.Query, task_id: str) -> Response:
    """The log of an attempt."""
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


def result(mesh: Mesh, caller: Caller, task_id: str) -> Response:
    """What the task returned."""
    return streamed_json(service.result(mesh, wire.reads(mesh), caller, task_id))


def artifact(mesh: Mesh, caller: Caller, task_id: str, name: str) -> Response:
    """An artifact's bytes."""
    read = wire.reads(mesh)
    read(lambda db: views.task_row(db, task_id, caller.sees))
    found = read(partial(views.artifact, task_id=task_id, name=name))
    return send_blob(mesh, found["sha256"], found["size"])


def task_verb(
    mesh: Mesh, caller: Caller, note: models.CancelRequest, task_id: str, verb: str
) -> Response:
    """Cancel, or queue again."""
    read = wire.reads(mesh)
    read(lambda db: views.task_row(db, task_id, caller.sees))
    row = service.operate(mesh, read, caller, task_id, verb, note.reason)
    return streamed_json(service.detail(mesh, read, row))


def _filters(caller: Caller, values: wire.Query) -> dict[str, Any]:
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


def _state(values: wire.Query) -> str | None:
    state = values.get("state")
    if state is not None and state not in {s.value for s in TaskState}:
        states = ", ".join(s.value for s in TaskState)
        raise RaeError("invalid_query", f"'state' is one of {states}")
    return state
