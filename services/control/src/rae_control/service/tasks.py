"""Use cases of a submitter's tasks: submit, look, wait, cancel, requeue; events and logs."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING, Any, Protocol

from rae_control.auth.authenticator import Caller
from rae_control.config import ControlConfig
from rae_control.core import why
from rae_control.ledger import tasks as ledger_tasks
from rae_control.ledger import verbs, views
from rae_control.ledger.base import Db, Row, Tx
from rae_control.ledger.claims import PREFER_S
from rae_control.ledger.submit import Prepared, in_order, prepare, submit
from rae_control.mesh.state import events_of
from rae_control.service.reads import Reads
from rae_control.storage.files import in_thread
from rae_control.storage.spooled import spooled
from rae_protocol import models
from rae_protocol.client import uuid7s
from rae_protocol.errors import RaeError
from rae_protocol.names import MAX_NEEDS_PER_CALL, TaskState

if TYPE_CHECKING:
    from rae_control.mesh.mesh import Mesh

LOG_PIECE = 1024 * 1024
# A submit with more tasks, more of what they need, or more bytes is large: taken one at a time,
# parsed in a thread, and written when small writes leave room.
BULK_ROWS, BULK_BYTES = 20, 16 * 1024


class Bytes(Protocol):
    """A request's body."""

    @property
    def size(self) -> int: ...
    def bytes(self) -> bytes: ...


@dataclass(frozen=True, slots=True)
class Place:
    """Where a reader of events is: behind number `after`, in the ledger of this incarnation."""

    after: int
    limit: int
    incarnation: Any = None


@dataclass(frozen=True, slots=True)
class LogPiece:
    """Bytes of an attempt's log; `ended`: no more will come."""

    attempt: int
    data: bytes
    ended: bool


def submit_body(mesh: Mesh, submitter: str, body: Bytes) -> list[models.TaskRef]:
    """Take the task or tasks of a submit's JSON. Raises RaeError."""

    def write(batch: list[Prepared], *, bulk: bool = False) -> list[models.TaskRef]:
        take = partial(submit, submitter=submitter, batch=batch, limits=mesh.room.check)
        return mesh.write(take, bulk=bulk)

    if body.size <= BULK_BYTES:
        with mesh.changing[submitter]:
            value = models.decode(body.bytes())
            tasks = value.get("tasks") if isinstance(value, dict) else None
            if not isinstance(tasks, list) or len(tasks) <= BULK_ROWS:
                batch = _prepared(value, submitter, mesh.config)
                if sum(1 + len(task.needs) + len(task.spec.inputs) for task in batch) <= BULK_ROWS:
                    return write(batch)
    with mesh.turns.of(submitter):
        return write(in_thread(_parsed, body, submitter, mesh.config), bulk=True)


def page(
    read: Reads, filters: dict[str, Any], limit: int, before: int | None
) -> tuple[list[models.TaskView], int | None]:
    """A page of a list, and where the next one begins. Each read looks at few tasks."""
    look = partial(views.task_list, filters=filters, limit=limit)
    found, after = read(partial(look, before=before))
    while not found and after is not None:
        found, after = read(partial(look, before=after))
    return found, after


def wait(mesh: Mesh, read: Reads, caller: Caller, task_id: str, seconds: float, seen: Any) -> Row:
    """The task, once it has ended (or, with `seen`, once its state is another one)."""

    def look() -> Row:
        return read(lambda db: views.task_row(db, task_id, caller.sees))

    row = look()

    def over(state: str) -> bool:
        return TaskState(state).final if seen is None else state != seen

    if seconds > 0 and not over(row["state"]):
        mesh.signals.wait([task_id], seconds, lambda: over(look()["state"]))
        row = look()
    return row


def detail(mesh: Mesh, read: Reads, row: Row) -> IO[bytes]:
    """A task as JSON, with its spec and result, in a stream at its end."""
    view = read(lambda db: views.detail(db, row))
    head = models.encode(view.model_copy(update={"why": why_not(mesh, read, row)}))

    def spool(db: Db) -> IO[bytes]:
        pieces = [head[:-1], b',"spec":', views.spec_text(db, row)]
        if (result := views.result_text(db, row)) is not None:
            pieces += [b',"result":', result]
        return spooled(mesh.blobs.aside, *pieces, b"}")

    return read(spool)


def result(mesh: Mesh, read: Reads, caller: Caller, task_id: str) -> IO[bytes]:
    """State, result and error as JSON, in a stream at its end. Raises RaeError."""
    row = read(lambda db: views.task_row(db, task_id, caller.sees))
    if not row["spec_bytes"] and row["state"] in {"succeeded", "failed"}:
        raise RaeError("result_dropped", f"{task_id} is {row['state']}: {verbs.DROPPED}")
    head = json.dumps({"task_id": task_id, "state": row["state"]}).encode()
    error = (row["error"] or "null").encode()

    def spool(db: Db) -> IO[bytes]:
        value = views.result_text(db, row) or b"null"
        return spooled(
            mesh.blobs.aside, head[:-1], b', "result": ', value, b', "error": ', error, b"}"
        )

    return read(spool)


def events(
    mesh: Mesh, read: Reads, caller: Caller, task_id: str | None, place: Place, seconds: float
) -> models.EventList:
    """What happened behind a place; waits so long where there is nothing.

    Raises RaeError `unknown_cursor`.
    """
    after, incarnation = place.after, mesh.ledger.incarnation

    def look() -> tuple[list[models.EventView], int, int]:
        return read(
            lambda db: (
                views.events(db, after, place.limit, submitter=caller.sees, task_id=task_id),
                *views.event_range(db, caller.sees),
            ),
        )

    found, newest, removed = look()
    if after > newest or place.incarnation not in {None, incarnation}:
        raise RaeError(
            "unknown_cursor", f"the newest event is {newest}", newest=newest,
            incarnation=incarnation,
        )  # fmt: skip
    if not found and seconds > 0:
        mesh.signals.wait([task_id or events_of(caller.sees)], seconds, lambda: bool(look()[0]))
        found, newest, removed = look()
    # A task's events go all at once, with the task.
    lost = after < removed and task_id is None
    following = found[-1].seq if found else max(after, removed) if lost else after
    return models.EventList(events=found, next=following, lost=lost, incarnation=incarnation)


def read_log(
    mesh: Mesh, read: Reads, caller: Caller, task_id: str, wanted: Any, offset: int, seconds: float
) -> LogPiece:
    """A piece of an attempt's log, of the latest one without `wanted`; waits so long for bytes."""

    def row() -> Row:
        return read(lambda db: views.task_row(db, task_id, caller.sees))

    def look() -> tuple[int, bytes, bool]:
        task = row()
        attempt = task["attempts"] if wanted is None else int(wanted)
        data = mesh.logs.read(task_id, attempt, offset, LOG_PIECE) if attempt else b""
        ended = attempt < task["attempts"] or task["state"] not in ledger_tasks.LIVE
        if not attempt:
            ended = TaskState(task["state"]).final
        return attempt, data, ended

    attempt, data, ended = look()
    if not data and not ended and seconds > 0:
        # Two kinds of news end the wait: bytes, or the end of the attempt.
        mesh.signals.wait([f"log {task_id}", task_id], seconds, lambda: look()[1:] != (b"", False))
        attempt, data, ended = look()
    return LogPiece(attempt, data, ended)


def operate(
    mesh: Mesh, read: Reads, caller: Caller, task_id: str, verb: str, reason: str | None
) -> Row:
    """Cancel or requeue a task; returns its row afterwards. Raises RaeError."""

    def change(tx: Tx) -> tuple[Row, str | None, str | None]:
        task = ledger_tasks.get(tx, task_id)
        node, lease = task["node_id"], None
        if verb == "cancel":
            lease = verbs.cancel(tx, task, reason)
        else:
            verbs.requeue(tx, task, reason, mesh.room.check)
        return views.task_row(tx.db, task_id, caller.sees), lease, node

    with mesh.changing[caller.name]:
        if verb == "requeue":
            while read(partial(verbs.releasing, task_id=task_id)):
                mesh.write_some(partial(ledger_tasks.release, needs=task_id))
        row, lease_id, node_id = mesh.write(change)
    node = mesh.nodes.get(node_id) if node_id else None
    if lease_id is not None and node is not None:
        node.order(
            models.Command(command="cancel", task_id=task_id, lease_id=lease_id, reason=reason)
        )
    return row


def why_not(mesh: Mesh, read: Reads, row: Row) -> list[str]:
    """What a task waits for, in sentences."""
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
        ahead = read(lambda db: views.ahead_of(db, row))
        requirements = mesh.nodes.wanted(lane.requirements if lane else {"runners": [row["kind"]]})
        fresh = mesh.clock.wall() - row["updated_at"] < PREFER_S
        failed_on = json.loads(row["avoid"] or "[]") if fresh else []
        held = mesh.why_held()
        reasons = why.why_queued(requirements, nodes, ahead, failed_on, leases=held is None)
        return reasons if held is None else [held, *reasons]
    if row["state"] == "waiting":
        needs = read(lambda db: views.unfinished_needs(db, row["task_id"]))
        left = None if row["not_before"] is None else row["not_before"] - mesh.ledger.earliest()
        lease = row["fence"]
        fence = None if lease is None else read(lambda db: views.node_of(db, lease))
        pause = why.pause_after(
            row["reason"], row["failures"], row["max_attempts"], row["in_row"]
        )  # fmt: skip
        return why.why_waiting(needs, left, fence, pause)
    if row["state"] == "leased":
        return [f"Node {row['node_id']} has it and has not confirmed that it starts."]
    return []


def _parsed(body: Bytes, submitter: str, config: ControlConfig) -> list[Prepared]:
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
