"""Use cases of a node's attempt: ack, progress, log, inputs, result, yield."""

from __future__ import annotations

import base64
import hashlib
import logging
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import IO, TYPE_CHECKING

from rae_control.ledger import results, views
from rae_control.ledger import tasks as ledger_tasks
from rae_control.ledger.base import Db, Row, Tx
from rae_control.ledger.claims import resolve_input
from rae_control.log import facts
from rae_control.node_table import NodeEntry
from rae_control.service.reads import Reads
from rae_control.storage.files import PIECE, in_thread
from rae_protocol import models
from rae_protocol.errors import RaeError
from rae_protocol.names import MAX_LOG_CHUNK, MAX_RESULT_BYTES
from rae_protocol.tasks import BlobInput, TaskInput, TaskSpec

if TYPE_CHECKING:
    from rae_control.mesh.mesh import Mesh

logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Part:
    """An artifact that came with a result: its name and its bytes, from their start."""

    name: str
    stream: IO[bytes]


def ack(mesh: Mesh, entry: NodeEntry, ref: models.Ack) -> models.ResultAnswer:
    """The node starts the task."""
    return _on_lease(mesh, entry, ref, "ack", ledger_tasks.ack)


def progress(mesh: Mesh, entry: NodeEntry, ref: models.Progress) -> models.ResultAnswer:
    """Keep the task's latest progress."""
    change = partial(ledger_tasks.progress, report=ref)
    return _on_lease(mesh, entry, ref, "progress", change)


def write_log(mesh: Mesh, entry: NodeEntry, chunk: models.LogChunk) -> models.ResultAnswer:
    """Add to the attempt's log. Raises RaeError `stale_lease`, `invalid_body`, `body_too_large`."""
    try:
        data = base64.b64decode(chunk.data, validate=True)
    except ValueError as error:  # binascii's own, or text that is not ASCII
        raise RaeError("invalid_body", "data is not base64") from error
    if len(data) > MAX_LOG_CHUNK:
        raise RaeError("body_too_large", f"a log chunk has at most {MAX_LOG_CHUNK} bytes")
    lease = mesh.leases.get(chunk.lease_id)
    if lease is None or (lease.node_id, lease.task_id, lease.attempt) != (
        entry.node_id, chunk.task_id, chunk.attempt,
    ):  # fmt: skip
        raise _stale(chunk.task_id, chunk.attempt, "log")
    if lease.acked is None:  # nothing runs yet, and an attempt without an ack costs nothing
        raise RaeError("stale_lease", f"log: attempt {chunk.attempt} is not acked")
    mesh.logs.write(chunk.task_id, chunk.attempt, chunk.offset, data)
    mesh.signals.tell(f"log {chunk.task_id}")
    return models.ResultAnswer(task_id=chunk.task_id, state="running")


def find_input(
    mesh: Mesh, read: Reads, entry: NodeEntry, task_id: str, lease_id: str, name: str
) -> Row:
    """The blob of a leased task's input: `sha256`, `size`.

    Raises RaeError `stale_lease`, `unknown_lease_input`.
    """
    lease = mesh.leases.get(lease_id)
    if lease is None or lease.node_id != entry.node_id or lease.task_id != task_id:
        raise RaeError("stale_lease", f"input: the lease of {task_id} is over")
    return read(partial(_input, task_id=task_id, name=name))


def deliver(
    mesh: Mesh, entry: NodeEntry, outcome: models.Result, parts: Sequence[Part], read: Reads,
    *, bulk: bool,
) -> models.ResultAnswer:  # fmt: skip
    """Take a result once; `bulk`: a large one.

    Raises RaeError `stale_lease`, `artifact_mismatch`.
    """
    described = {meta.name: meta for meta in outcome.artifacts}
    # Without a lease of this node nothing is stored: the parts lie in unnamed files and end with
    # this request.
    wanted = read(lambda db: results.expected(db, entry.node_id, outcome)) if parts else None
    stored = []
    for part in parts:
        meta = described.pop(part.name, None)
        sha256, size = in_thread(_measure, part.stream)
        if meta is not None and meta.sha256 not in {None, sha256}:
            raise RaeError("artifact_mismatch", f"'{part.name}': the bytes hash to {sha256}")
        stored.append(results.Stored(part.name, sha256, size, meta.type if meta else ""))
    if described:
        raise RaeError("artifact_mismatch", f"'{min(described)}' is described, but was not sent")
    if wanted is not None:
        results.declared(wanted[1], stored)
    # Comparable across JSON and multipart, and without the boundary, which differs each time. In a
    # thread, because what a task returns may have megabytes.
    digest = in_thread(_digest, outcome, stored)
    # The node forgets its log with the answer.
    for lease in mesh.leases.of_node(entry.node_id):
        if lease.task_id == outcome.task_id:
            mesh.logs.sync(lease.task_id, lease.attempt)
    write = partial(
        results.deliver, node_id=entry.node_id, result=outcome, digest=digest, artifacts=stored,
        limits=mesh.limits, another=mesh.another, stored_for=wanted and wanted[0],
    )  # fmt: skip
    with mesh.storing([item.sha256 for item in stored] if wanted else []):
        for part in parts if wanted else []:
            mesh.blobs.add(part.stream, MAX_RESULT_BYTES)
        state = mesh.write(write, bulk=bulk)
        if state is None:
            raise _stale(outcome.task_id, outcome.attempt, "result")
    for node_id, reason in mesh.health.to_cordon().items():
        mesh.cordon(node_id, reason)
    return models.ResultAnswer(task_id=outcome.task_id, state=state)


def hand_back(mesh: Mesh, entry: NodeEntry, ref: models.YieldRequest) -> models.ResultAnswer:
    """The node gives the task back. Raises RaeError `stale_lease`."""
    state, cordoned = mesh.write(
        lambda tx: results.hand_back(tx, entry.node_id, ref, mesh.limits, mesh.config.cordon_after)
    )
    if cordoned is not None:
        logger.warning("node_cordoned", extra=facts(entry.node_id, reason=cordoned))
    if state is None:
        raise _stale(ref.task_id, ref.attempt, "yield")
    return models.ResultAnswer(task_id=ref.task_id, state=state)


def _digest(outcome: models.Result, stored: Sequence[results.Stored]) -> str:
    body = outcome.model_dump(mode="json", exclude={"artifacts"})
    return ledger_tasks.digest_of(body, [(item.name, item.sha256) for item in stored])


def _measure(stream: IO[bytes]) -> tuple[str, int]:
    """SHA-256 and size of what the stream holds; it is at its start again afterwards."""
    digest, size = hashlib.sha256(), 0
    while piece := stream.read(PIECE):
        digest.update(piece)
        size += len(piece)
    stream.seek(0)
    return digest.hexdigest(), size


def _input(db: Db, task_id: str, name: str) -> Row:
    row = views.task_row(db, task_id, None)
    spec = TaskSpec.model_validate_json(views.spec_text(db, row))
    source = spec.inputs.get(name)
    if not isinstance(source, BlobInput | TaskInput):
        raise RaeError("unknown_lease_input", f"'{name[:100]}'")
    found = resolve_input(db, row["submitter"], source)
    if found is None:
        raise RaeError("unknown_lease_input", f"the content of '{name[:100]}' is gone")
    return found


def _on_lease(
    mesh: Mesh, entry: NodeEntry, ref: models.LeaseRef, call: str, change: Callable[[Tx, Row], None]
) -> models.ResultAnswer:
    """Change the task of an open lease. Raises RaeError `stale_lease`."""

    def run(tx: Tx) -> str | None:
        task = ledger_tasks.open_attempt(
            tx, call, entry.node_id, ref.task_id, ref.attempt, ref.lease_id
        )
        if task is None:
            return None
        change(tx, task)
        return str(task["state"])

    state = mesh.write(run)
    if state is None:
        raise _stale(ref.task_id, ref.attempt, call)
    return models.ResultAnswer(task_id=ref.task_id, state=state)


def _stale(task_id: str, attempt: int | None, call: str) -> RaeError:
    return RaeError("stale_lease", f"{call}: attempt {attempt or '?'} of {task_id} is over")
