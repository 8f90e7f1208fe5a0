"""RAE's side: submit, look, wait, cancel, requeue; logs, results, artifacts, events."""

from __future__ import annotations

import json
from functools import partial
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Response, request

from rae_control.api import http
from rae_control.api.work import send_blob
from rae_control.auth import Caller
from rae_control.core import why
from rae_control.ledger import tasks as ledger_tasks
from rae_control.ledger import views
from rae_control.ledger.store import Row, Tx, fetch
from rae_control.ledger.submit import Prepared, check_circles, prepare, submit
from rae_protocol import models
from rae_protocol.client import uuid7
from rae_protocol.errors import RaeError
from rae_protocol.names import MAX_JSON_BYTES, TaskState

if TYPE_CHECKING:
    from rae_control.mesh import Mesh

LOG_PIECE = 1024 * 1024


def blueprint(mesh: Mesh) -> Blueprint:
    """The submitter's paths under /tasks, and /events."""
    bp = Blueprint("tasks", __name__)

    @bp.post("/tasks")
    def submit_tasks() -> Response:
        caller = http.role_call(mesh, "submit")
        batch = _prepare(mesh, caller, http.read_body(MAX_JSON_BYTES))
        refs = mesh.write(partial(submit, submitter=caller.name, batch=batch))
        return http.answer(models.Submitted(tasks=refs), 201)

    @bp.get("/tasks")
    def list_tasks() -> Response:
        caller = http.role_call(mesh, "read_own")
        values = http.query(
            {"state": str, "kind": str, "label": str, "node": str, "submitter": str, "limit": int,
             "cursor": int}
        )  # fmt: skip
        filters = _filters(caller, values)
        limit = http.limit(values, 100, views.LIST_LIMIT)
        before = int(values["cursor"]) if "cursor" in values else None
        page, after = mesh.read(lambda db: views.task_list(db, filters, limit, before))
        cursor = None if after is None else str(after)
        return http.answer(models.TaskList(tasks=page, next=cursor))

    @bp.get("/tasks/<task_id>")
    def one_task(task_id: str) -> Response:
        caller = http.role_call(mesh, "read_own")
        values = http.query({"wait": float, "state": str})
        row = _wait(mesh, caller, task_id, http.wait_seconds(values), _state(values))
        return http.answer(_detail(mesh, row))

    @bp.get("/tasks/<task_id>/events")
    def task_events(task_id: str) -> Response:
        caller = http.role_call(mesh, "read_own")
        mesh.read(lambda db: views.task_row(db, task_id, caller.sees))
        return _events(mesh, caller, task_id)

    @bp.get("/events")
    def events() -> Response:
        return _events(mesh, http.role_call(mesh, "read_own"), None)

    @bp.get("/tasks/<task_id>/log")
    def log(task_id: str) -> Response:
        caller = http.role_call(mesh, "read_own")
        values = http.query({"attempt": int, "offset": int, "wait": float})
        return _log(mesh, caller, task_id, values)

    @bp.get("/tasks/<task_id>/result")
    def result(task_id: str) -> Response:
        caller = http.role_call(mesh, "read_own")
        row = mesh.read(lambda db: views.task_row(db, task_id, caller.sees))
        body = {
            "task_id": task_id,
            "state": row["state"],
            "result": json.loads(row["result"]) if row["result"] is not None else None,
            "error": json.loads(row["error"]) if row["error"] else None,
        }
        return Response(json.dumps(body), mimetype="application/json")

    @bp.get("/tasks/<task_id>/artifacts/<path:name>")
    def artifact(task_id: str, name: str) -> Response:
        caller = http.role_call(mesh, "read_own")
        mesh.read(lambda db: views.task_row(db, task_id, caller.sees))
        sql = "SELECT * FROM artifacts WHERE task_id = ? AND name = ?"
        found = mesh.read(lambda db: fetch(db, sql, (task_id, name)))
        if not found:
            raise RaeError("unknown_artifact", f"'{name[:100]}'")
        return send_blob(mesh, found[0]["sha256"], found[0]["size"])

    @bp.post("/tasks/<task_id>/<any(cancel, requeue):verb>")
    def task_verb(task_id: str, verb: str) -> Response:
        caller = http.role_call(mesh, "submit")
        body = http.parse_json(models.CancelRequest, http.read_body(MAX_JSON_BYTES), empty=True)
        mesh.read(lambda db: views.task_row(db, task_id, caller.sees))
        return http.answer(_verb(mesh, task_id, verb, body.reason))

    return bp


def _prepare(mesh: Mesh, caller: Caller, body: http.Body) -> list[Prepared]:
    if request.mimetype != "application/json":
        raise RaeError("unsupported_media", f"Content-Type is {request.mimetype or 'missing'}")
    value = http.decode(body)
    many = isinstance(value, dict) and "tasks" in value
    specs = (
        models.parse(models.SubmitMany, value).tasks
        if many
        else [models.parse(models.TaskSpec, value)]
    )
    mesh.check_disk()
    config = mesh.config
    for spec in specs:
        ttl = spec.lease_ttl_s
        if ttl is not None and not config.min_lease_ttl_s <= ttl <= config.max_lease_ttl_s:
            low, high = config.min_lease_ttl_s, config.max_lease_ttl_s
            raise RaeError(
                "invalid_body", f"lease_ttl_s: {ttl:g} is not within {low:g} to {high:g}"
            )
    batch = [
        prepare(spec, spec.task_id or uuid7(), caller.name, config.default_lease_ttl_s)
        for spec in specs
    ]
    check_circles(batch)
    tasks, size = mesh.backlog[caller.name]
    new_size = sum(len(task.text) for task in batch)
    if tasks + len(batch) > config.max_queued or size + new_size > config.max_queued_bytes:
        raise RaeError("queue_full", f"{tasks} tasks with {size} bytes wait", retry_after_s=30)
    lanes = {task.lane_id for task in batch} - mesh.lanes.lanes.keys()
    if lanes and len(mesh.lanes.lanes) + len(lanes) > config.max_lanes:
        raise RaeError(
            "too_many_lanes", f"{len(mesh.lanes.lanes)} lanes are open", retry_after_s=30
        )
    return batch


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


def _wait(mesh: Mesh, caller: Caller, task_id: str, seconds: float, seen: Any) -> Row:
    """The task, once it has ended (or, with `seen`, once its state is another one)."""

    def read() -> Row:
        return mesh.read(lambda db: views.task_row(db, task_id, caller.sees))

    row = read()

    def over(state: str) -> bool:
        return TaskState(state).final if seen is None else state != seen

    if seconds > 0 and not over(row["state"]):
        mesh.signals.wait([task_id], seconds, lambda: over(read()["state"]))
        row = read()
    return row


def _detail(mesh: Mesh, row: Row) -> models.TaskView:
    view = mesh.read(lambda db: views.detail(db, row))
    if row["state"] == "queued":
        lane = mesh.lanes.lanes.get(row["lane_id"])
        nodes = [
            why.NodeNow(
                n.facts,
                n.state,
                n.availability.value,
                mesh.dispatch.free_slots(n, n.facts.slots),
                n.reasons,
                n.cordoned or n.draining,
                n.poll is not None,
                n.poll.vram_free_mb if n.poll else None,
                bool(n.info and n.info.trusted),
            )
            for n in mesh.nodes
        ]
        ahead = mesh.read(lambda db: views.ahead_of(db, row))
        requirements = lane.requirements if lane else {"runners": [row["kind"]]}
        reasons = why.why_queued(requirements, nodes, ahead, mesh.keeper.available)
        if (held := mesh.why_held()) is not None:
            reasons = [held, *reasons]
    elif row["state"] == "waiting":
        needs = mesh.read(lambda db: views.unfinished_needs(db, row["task_id"]))
        left = None if row["not_before"] is None else row["not_before"] - mesh.clock.wall()
        lease = row["fence"]
        fence = None if lease is None else mesh.read(lambda db: views.node_of(db, lease))
        pause = why.pause_after(
            row["reason"], row["failures"], row["max_attempts"], row["in_row"]
        )  # fmt: skip
        reasons = why.why_waiting(needs, left, fence, pause)
    elif row["state"] == "leased":
        reasons = [f"Node {row['node_id']} has it and has not confirmed that it starts."]
    else:
        reasons = []
    return view.model_copy(update={"why": reasons})


def _events(mesh: Mesh, caller: Caller, task_id: str | None) -> Response:
    values = http.query({"after": int, "wait": float, "limit": int})
    after, wait = int(values.get("after", 0)), http.wait_seconds(values)
    limit = http.limit(values, 500, 1000)

    def read() -> list[models.EventView]:
        return mesh.read(
            lambda db: views.events(db, after, limit, submitter=caller.sees, task_id=task_id)
        )

    found = read()
    if not found and wait > 0:
        mesh.signals.wait([task_id] if task_id else [], wait, lambda: bool(read()))
        found = read()
    return http.answer(models.EventList(events=found, next=found[-1].seq if found else after))


def _log(mesh: Mesh, caller: Caller, task_id: str, values: dict[str, Any]) -> Response:
    offset, wait = int(values.get("offset", 0)), http.wait_seconds(values)

    def row() -> Row:
        return mesh.read(lambda db: views.task_row(db, task_id, caller.sees))

    def look() -> tuple[int, bytes, bool]:
        task = row()
        attempt = int(values["attempt"] if "attempt" in values else task["attempts"])
        data = mesh.logs.read(task_id, attempt, offset, LOG_PIECE) if attempt else b""
        ended = attempt < task["attempts"] or task["state"] not in ledger_tasks.LIVE
        if not attempt:
            ended = TaskState(task["state"]).final
        return attempt, data, ended

    attempt, data, ended = look()
    if not data and not ended and wait > 0:
        # Two kinds of news end the wait: bytes, or the end of the attempt.
        mesh.signals.wait([f"log {task_id}", task_id], wait, lambda: look()[1:] != (b"", False))
        attempt, data, ended = look()
    headers = {
        "X-RAE-Attempt": str(attempt),
        "X-RAE-Next-Offset": str(offset + len(data)),
        "X-RAE-Complete": "1" if ended and not data else "0",
        "X-Content-Type-Options": "nosniff",
    }
    return Response(data, 200, headers, mimetype="text/plain")


def _verb(mesh: Mesh, task_id: str, verb: str, reason: str | None) -> models.TaskView:
    def change(tx: Tx) -> tuple[Row, str | None, str | None]:
        task = ledger_tasks.get(tx, task_id)
        node, lease = task["node_id"], None
        if verb == "cancel":
            lease = ledger_tasks.cancel(tx, task, reason)
        else:
            ledger_tasks.requeue(tx, task, reason)
        return ledger_tasks.get(tx, task_id), lease, node

    row, lease_id, node_id = mesh.write(change)
    node = mesh.nodes.get(node_id) if node_id else None
    if lease_id is not None and node is not None:
        node.order(
            models.Command(command="cancel", task_id=task_id, lease_id=lease_id, reason=reason)
        )
    return _detail(mesh, row)
