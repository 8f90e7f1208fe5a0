"""RAE's side: submit, look, wait, cancel, requeue; logs, results, artifacts, events."""

from __future__ import annotations

import json
from functools import partial
from typing import IO, TYPE_CHECKING, Any

import apsw
from flask import Blueprint, Response, request

from rae_control import wire
from rae_control.api.streams import spooled, streamed_json
from rae_control.api.work import send_blob
from rae_control.auth.authenticator import Caller
from rae_control.config import ControlConfig
from rae_control.core import why
from rae_control.ledger import tasks as ledger_tasks
from rae_control.ledger import verbs, views
from rae_control.ledger.claims import PREFER_S
from rae_control.ledger.sqlite import Row, Tx, fetch
from rae_control.ledger.submit import Prepared, in_order, prepare, submit
from rae_control.mesh.state import events_of
from rae_control.storage.files import in_thread
from rae_protocol import models
from rae_protocol.client import uuid7s
from rae_protocol.errors import RaeError
from rae_protocol.names import MAX_JSON_BYTES, MAX_NEEDS_PER_CALL, TaskState

if TYPE_CHECKING:
    from rae_control.mesh.mesh import Mesh

LOG_PIECE = 1024 * 1024
# A submit with more tasks, more of what they need, or more bytes is large: taken one at a time,
# parsed in a thread, and written when small writes leave room.
BULK_ROWS, BULK_BYTES = 20, 128 * 1024


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
        return wire.answer(models.Submitted(tasks=_submit(mesh, caller, body)), 201)

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
        read = partial(views.task_list, filters=filters, limit=limit)
        page, after = wire.read(mesh, partial(read, before=before))
        while not page and after is not None:
            page, after = wire.read(mesh, partial(read, before=after))
        cursor = None if after is None else str(after)
        return wire.answer(models.TaskList(tasks=page, next=cursor))

    @bp.get("/tasks/<task_id>")
    def one_task(task_id: str) -> Response:
        caller = wire.role_call(mesh, "read_own")
        values = wire.query({"wait": float, "state": str})
        row = _wait(mesh, caller, task_id, wire.wait_seconds(values), _state(values))
        return _detail(mesh, row)

    @bp.get("/tasks/<task_id>/events")
    def task_events(task_id: str) -> Response:
        caller = wire.role_call(mesh, "read_own")
        wire.read(mesh, lambda db: views.task_row(db, task_id, caller.sees))
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
        row = wire.read(mesh, lambda db: views.task_row(db, task_id, caller.sees))
        if not row["spec_bytes"] and row["state"] in {"succeeded", "failed"}:
            raise RaeError("result_dropped", f"{task_id} is {row['state']}: {verbs.DROPPED}")
        head = json.dumps({"task_id": task_id, "state": row["state"]}).encode()
        error = (row["error"] or "null").encode()

        def spool(db: apsw.Connection) -> IO[bytes]:
            value = views.result_text(db, row) or b"null"
            return spooled(
                mesh.blobs.aside, head[:-1], b', "result": ', value, b', "error": ', error, b"}"
            )

        return streamed_json(wire.read(mesh, spool))

    @bp.get("/tasks/<task_id>/artifacts/<path:name>")
    def artifact(task_id: str, name: str) -> Response:
        caller = wire.role_call(mesh, "read_own")
        wire.read(mesh, lambda db: views.task_row(db, task_id, caller.sees))
        sql = "SELECT * FROM artifacts WHERE task_id = ? AND name = ?"
        found = wire.read(mesh, lambda db: fetch(db, sql, (task_id, name)))
        if not found:
            raise RaeError("unknown_artifact", f"'{name[:100]}'")
        return send_blob(mesh, found[0]["sha256"], found[0]["size"])

    @bp.post("/tasks/<task_id>/<any(cancel, requeue):verb>")
    def task_verb(task_id: str, verb: str) -> Response:
        caller = wire.role_call(mesh, "submit")
        body = wire.parse_json(models.CancelRequest, wire.read_body(MAX_JSON_BYTES), empty=True)
        wire.read(mesh, lambda db: views.task_row(db, task_id, caller.sees))
        return _detail(mesh, _verb(mesh, caller, task_id, verb, body.reason))

    return bp


def _submit(mesh: Mesh, caller: Caller, body: wire.Body) -> list[models.TaskRef]:
    def write(batch: list[Prepared], *, bulk: bool = False) -> list[models.TaskRef]:
        take = partial(submit, submitter=caller.name, batch=batch, limits=mesh.room.check)
        return mesh.write(take, bulk=bulk)

    if body.size <= BULK_BYTES:
        value = models.decode(body.bytes())
        tasks = value.get("tasks") if isinstance(value, dict) else None
        if not isinstance(tasks, list) or len(tasks) <= BULK_ROWS:
            batch = _prepared(value, caller.name, mesh.config)
            if sum(1 + len(task.needs) + len(task.spec.inputs) for task in batch) <= BULK_ROWS:
                return write(batch)
    with mesh.turns.of(caller.name):
        return write(in_thread(_parsed, body, caller.name, mesh.config), bulk=True)


def _parsed(body: wire.Body, submitter: str, config: ControlConfig) -> list[Prepared]:
    return _prepared(models.decode(body.bytes()), submitter, config)


def _prepared(value: object, submitter: str, config: ControlConfig) -> list[Prepared]:
    many = isinstance(value, dict) and "tasks" in value
    specs = (
        models.parse(models.SubmitMany, value).tasks
        if many
        else [models.parse(models.TaskSpec, value)]
    )
    for spec in specs:
        ttl = spec.lease_ttl_s
        if ttl is not None and not config.min_lease_ttl_s <= ttl <= config.max_lease_ttl_s:
            low, high = config.min_lease_ttl_s, config.max_lease_ttl_s
            raise RaeError(
                "invalid_body", f"lease_ttl_s: {ttl:g} is not within {low:g} to {high:g}"
            )
    batch = [
        prepare(spec, spec.task_id or fresh, submitter, config.default_lease_ttl_s)
        for spec, fresh in zip(specs, uuid7s(len(specs)), strict=True)
    ]
    needs = sum(len(task.needs) for task in batch)
    if needs > MAX_NEEDS_PER_CALL:
        raise RaeError(
            "invalid_body",
            f"the tasks have {needs} dependencies; {MAX_NEEDS_PER_CALL} are allowed in one call",
        )
    in_order(batch)
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
        return wire.read(mesh, lambda db: views.task_row(db, task_id, caller.sees))

    row = read()

    def over(state: str) -> bool:
        return TaskState(state).final if seen is None else state != seen

    if seconds > 0 and not over(row["state"]):
        mesh.signals.wait([task_id], seconds, lambda: over(read()["state"]))
        row = read()
    return row


def _detail(mesh: Mesh, row: Row) -> Response:
    view = wire.read(mesh, lambda db: views.detail(db, row))
    if row["state"] == "queued":
        lane = mesh.lanes.lanes.get(row["lane_id"])
        nodes = [
            why.NodeNow(
                n.facts,
                n.state,
                n.availability.value,
                mesh.dispatch.offered(n),
                n.reasons,
                n.cordoned or n.draining,
                n.poll is not None,
                n.poll.vram_free_mb if n.poll else None,
                bool(n.info and n.info.trusted),
            )
            for n in mesh.nodes
        ]
        ahead = wire.read(mesh, lambda db: views.ahead_of(db, row))
        requirements = mesh.nodes.wanted(lane.requirements if lane else {"runners": [row["kind"]]})
        fresh = mesh.clock.wall() - row["updated_at"] < PREFER_S
        failed_on = json.loads(row["avoid"] or "[]") if fresh else []
        reasons = why.why_queued(requirements, nodes, ahead, failed_on)
        if (held := mesh.why_held()) is not None:
            reasons = [held, *reasons]
    elif row["state"] == "waiting":
        needs = wire.read(mesh, lambda db: views.unfinished_needs(db, row["task_id"]))
        left = None if row["not_before"] is None else row["not_before"] - mesh.ledger.earliest()
        lease = row["fence"]
        fence = None if lease is None else wire.read(mesh, lambda db: views.node_of(db, lease))
        pause = why.pause_after(
            row["reason"], row["failures"], row["max_attempts"], row["in_row"]
        )  # fmt: skip
        reasons = why.why_waiting(needs, left, fence, pause)
    elif row["state"] == "leased":
        reasons = [f"Node {row['node_id']} has it and has not confirmed that it starts."]
    else:
        reasons = []
    head = models.encode(view.model_copy(update={"why": reasons}))

    def spool(db: apsw.Connection) -> IO[bytes]:
        pieces = [head[:-1], b',"spec":', views.spec_text(db, row)]
        if (result := views.result_text(db, row)) is not None:
            pieces += [b',"result":', result]
        return spooled(mesh.blobs.aside, *pieces, b"}")

    return streamed_json(wire.read(mesh, spool))


def _events(mesh: Mesh, caller: Caller, task_id: str | None) -> Response:
    values = wire.query({"after": int, "wait": float, "limit": int, "incarnation": str})
    after, wait = int(values.get("after", 0)), wire.wait_seconds(values)
    limit = wire.limit(values, 500, 1000)

    def read() -> tuple[list[models.EventView], int, int]:
        return wire.read(
            mesh,
            lambda db: (
                views.events(db, after, limit, submitter=caller.sees, task_id=task_id),
                *views.event_range(db, caller.sees),
            ),
        )

    incarnation = mesh.ledger.incarnation
    found, newest, removed = read()
    if after > newest or values.get("incarnation", incarnation) != incarnation:
        raise RaeError(
            "unknown_cursor", f"the newest event is {newest}", newest=newest,
            incarnation=incarnation,
        )  # fmt: skip
    if not found and wait > 0:
        mesh.signals.wait([task_id or events_of(caller.sees)], wait, lambda: bool(read()[0]))
        found, newest, removed = read()
    # A task's events go all at once, with the task.
    lost = after < removed and task_id is None
    following = found[-1].seq if found else max(after, removed) if lost else after
    return wire.answer(
        models.EventList(events=found, next=following, lost=lost, incarnation=incarnation)
    )


def _log(mesh: Mesh, caller: Caller, task_id: str, values: dict[str, Any]) -> Response:
    offset, wait = int(values.get("offset", 0)), wire.wait_seconds(values)

    def row() -> Row:
        return wire.read(mesh, lambda db: views.task_row(db, task_id, caller.sees))

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


def _verb(mesh: Mesh, caller: Caller, task_id: str, verb: str, reason: str | None) -> Row:
    def change(tx: Tx) -> tuple[Row, str | None, str | None]:
        task = ledger_tasks.get(tx, task_id)
        node, lease = task["node_id"], None
        if verb == "cancel":
            lease = verbs.cancel(tx, task, reason)
        else:
            verbs.requeue(tx, task, reason, mesh.room.check)
        return views.task_row(tx.db, task_id, caller.sees), lease, node

    if verb == "requeue":
        while wire.read(mesh, partial(verbs.releasing, task_id=task_id)):
            mesh.write_some(partial(ledger_tasks.release, needs=task_id))
    row, lease_id, node_id = mesh.write(change)
    node = mesh.nodes.get(node_id) if node_id else None
    if lease_id is not None and node is not None:
        node.order(
            models.Command(command="cancel", task_id=task_id, lease_id=lease_id, reason=reason)
        )
    return row
