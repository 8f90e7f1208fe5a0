"""The node's calls about its work: poll, inputs, ack, progress, log, result, yield."""

from __future__ import annotations

import base64
import hashlib
import logging
import select
import socket
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import IO, TYPE_CHECKING, Any, TypeVar

from flask import Blueprint, Response, request
from werkzeug.datastructures import FileStorage
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.formparser import MultiPartParser

from rae_control import wire
from rae_control.ledger import results
from rae_control.ledger import tasks as ledger_tasks
from rae_control.ledger.claims import resolve_input
from rae_control.ledger.sqlite import Row, Tx
from rae_control.log import facts
from rae_control.node_table import NodeEntry
from rae_control.storage.files import PIECE, in_thread
from rae_protocol import models
from rae_protocol.errors import RaeError
from rae_protocol.names import MAX_JSON_BYTES, MAX_LOG_CHUNK, MAX_RESULT_BYTES, relative_path
from rae_protocol.tasks import BlobInput, TaskInput

if TYPE_CHECKING:
    from rae_control.mesh.mesh import Mesh

R = TypeVar("R", bound=models.LeaseRef)
PART = "artifacts/"
log = logging.getLogger(__name__)


def blueprint(mesh: Mesh) -> Blueprint:
    """The node's paths under /tasks."""
    bp = Blueprint("work", __name__)
    _lease_calls(bp, mesh)
    _outcome_calls(bp, mesh)
    return bp


def _lease_calls(bp: Blueprint, mesh: Mesh) -> None:
    @bp.get("/tasks/poll")
    def poll() -> Response:
        entry, _ = wire.node_call(mesh)
        values = wire.query({"wait": float, "slots": str, "vram_free_mb": float})
        if not entry.online:
            raise RaeError("register_again", f"node {entry.node_id} is offline")
        vram = values.get("vram_free_mb")
        slots = _slots(entry, values.get("slots"))
        if slots != [] and len(entry.facts.slots) == 1:
            mesh.leases.forget(entry.node_id)  # its one slot is free, it says
        answer = mesh.dispatch.poll(
            entry.node_id, slots, None if vram is None else float(vram),
            wire.wait_seconds(values), _hung_up(),
        )  # fmt: skip
        return wire.answer(answer.model_copy(update=mesh.config.periods))

    @bp.post("/tasks/ack")
    def ack() -> Response:
        return _on_lease(mesh, models.Ack, "ack", lambda tx, task, _: ledger_tasks.ack(tx, task))

    @bp.post("/tasks/progress")
    def progress() -> Response:
        return _on_lease(mesh, models.Progress, "progress", ledger_tasks.progress)

    @bp.post("/tasks/log")
    def log() -> Response:
        entry, body = wire.node_call(mesh)
        chunk = wire.parse_json(models.LogChunk, body)
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
            raise RaeError(
                "stale_lease", f"log: attempt {chunk.attempt} of {chunk.task_id} is over"
            )
        if lease.acked is None:  # nothing runs yet, and an attempt without an ack costs nothing
            raise RaeError("stale_lease", f"log: attempt {chunk.attempt} is not acked")
        mesh.logs.write(chunk.task_id, chunk.attempt, chunk.offset, data)
        mesh.signals.tell(f"log {chunk.task_id}")
        return wire.answer(models.ResultAnswer(task_id=chunk.task_id, state="running"))

    @bp.get("/tasks/<task_id>/inputs/<path:name>")
    def task_input(task_id: str, name: str) -> Response:
        entry, _ = wire.node_call(mesh)
        values = wire.query({"attempt": int, "lease_id": str})
        lease = mesh.leases.get(str(values.get("lease_id", "")))
        if lease is None or lease.node_id != entry.node_id or lease.task_id != task_id:
            raise RaeError("stale_lease", f"input: the lease of {task_id} is over")
        found = mesh.write(partial(_find_input, task_id=task_id, name=name))
        return send_blob(mesh, found["sha256"], found["size"])


def _outcome_calls(bp: Blueprint, mesh: Mesh) -> None:
    @bp.post("/tasks/result")
    def result() -> Response:
        entry, body = wire.node_call(mesh, MAX_RESULT_BYTES, each=1024 * 1024)
        # A repeated one waits until the first is taken, and so do all others of the node: what they
        # cost at once is one result's.
        with entry.delivering:
            parts: list[FileStorage] = []
            if request.mimetype == "multipart/form-data":
                boundary = request.mimetype_params.get("boundary", "")
                outcome, parts = in_thread(_parse_multipart, body, boundary, wire.to_close())
            elif body.size > MAX_JSON_BYTES:
                raise RaeError("body_too_large", f"JSON has at most {MAX_JSON_BYTES} bytes")
            else:
                outcome = wire.parse_json(models.Result, body)
            return wire.answer(_deliver(mesh, entry, outcome, parts))

    @bp.post("/tasks/yield")
    def hand_back() -> Response:
        entry, body = wire.node_call(mesh)
        ref = wire.parse_json(models.YieldRequest, body)
        state, cordoned = mesh.write(
            lambda tx: results.hand_back(
                tx, entry.node_id, ref, mesh.limits, mesh.config.cordon_after
            )
        )
        if cordoned is not None:
            log.warning("node_cordoned", extra=facts(entry.node_id, reason=cordoned))
        if state is None:
            raise _stale(ref.task_id, ref.attempt, "yield")
        return wire.answer(models.ResultAnswer(task_id=ref.task_id, state=state))


def send_blob(
    mesh: Mesh, sha256: str, size: int, mimetype: str = "application/octet-stream"
) -> Response:
    """Stream a blob in pieces that the thread pool reads."""
    path = mesh.blobs.path(sha256)

    def pieces() -> Iterator[bytes]:
        handle: IO[bytes] = in_thread(path.open, "rb")
        with handle:
            while piece := in_thread(handle.read, PIECE):
                yield piece

    headers = {
        "Content-Length": str(size),
        "ETag": f'"{sha256}"',
        "X-Content-Type-Options": "nosniff",
    }
    return Response(pieces(), 200, headers, mimetype=mimetype)


def _deliver(
    mesh: Mesh, entry: NodeEntry, outcome: models.Result, parts: list[FileStorage]
) -> models.ResultAnswer:
    described = {meta.name: meta for meta in outcome.artifacts}
    # Without a lease of this node nothing is stored: the parts lie in unnamed files and end with
    # this request.
    wanted = (
        wire.read(mesh, lambda db: results.expected(db, entry.node_id, outcome)) if parts else None
    )
    stored = []
    for part in parts:
        name = str(part.name)[len(PART) :]
        meta = described.pop(name, None)
        sha256, size = in_thread(_measure, part.stream)
        if meta is not None and meta.sha256 not in {None, sha256}:
            raise RaeError("artifact_mismatch", f"'{name}': the bytes hash to {sha256}")
        stored.append(results.Stored(name, sha256, size, meta.type if meta else ""))
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
    deliver = partial(
        results.deliver, node_id=entry.node_id, result=outcome, digest=digest, artifacts=stored,
        limits=mesh.limits, another=mesh.another, stored_for=wanted and wanted[0],
    )  # fmt: skip
    with mesh.storing([item.sha256 for item in stored] if wanted else []):
        for part in parts if wanted else []:
            mesh.blobs.add(part.stream, MAX_RESULT_BYTES)
        state = mesh.write(deliver)
        if state is None:
            raise _stale(outcome.task_id, outcome.attempt, "result")
    for node_id, reason in mesh.health.to_cordon().items():
        mesh.cordon(node_id, reason)
    return models.ResultAnswer(task_id=outcome.task_id, state=state)


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


def _parse_multipart(
    body: wire.Body, boundary: str, streams: list[IO[bytes]]
) -> tuple[models.Result, list[FileStorage]]:
    if not boundary:
        raise RaeError("invalid_body", "the multipart body names no boundary")
    parser = MultiPartParser(
        stream_factory=lambda *_, **__: wire.spooled(streams),
        max_form_memory_size=MAX_JSON_BYTES,
        max_form_parts=300,
    )
    try:
        form, files = parser.parse(body.stream, boundary.encode("ascii", "replace"), body.size)
    except (ValueError, RequestEntityTooLarge) as error:
        raise RaeError("invalid_body", f"the multipart body cannot be read: {error}") from error
    metadata = form.getlist("metadata")
    texts = [item.encode() for item in metadata] + [f.read() for f in files.getlist("metadata")]
    if len(texts) != 1 or len(form) > len(metadata):
        raise RaeError("invalid_body", "send one part named metadata and parts artifacts/<name>")
    outcome = models.parse(models.Result, models.decode(texts[0]))
    parts: list[FileStorage] = []
    names: set[str] = set()
    for field, part in files.items(multi=True):
        if field == "metadata":
            continue
        # The parser takes %22 for a quotation mark; names never have one (names.py): undo it.
        plain = field.replace('"', "%22").replace("\n", "%0A").replace("\r", "%0D")
        name = plain[len(PART) :] if plain.startswith(PART) else None
        if name is None:
            raise RaeError("invalid_body", f"part '{field[:100]}' is not named artifacts/<name>")
        try:
            relative_path(name)
        except ValueError as error:
            raise RaeError("invalid_body", f"artifact name: {error}") from error
        if name in names:
            raise RaeError("invalid_body", f"artifact '{name}' was sent twice")
        names.add(name)
        part.name = field and plain
        parts.append(part)
    return outcome, parts


def _find_input(tx: Tx, task_id: str, name: str) -> Row:
    task = ledger_tasks.get(tx, task_id)
    source = ledger_tasks.spec_of(tx, task).inputs.get(name)
    if not isinstance(source, BlobInput | TaskInput):
        raise RaeError("unknown_lease_input", f"'{name[:100]}'")
    found = resolve_input(tx, task["submitter"], source)
    if found is None:
        raise RaeError("unknown_lease_input", f"the content of '{name[:100]}' is gone")
    return found


def _on_lease(
    mesh: Mesh, model: type[R], call: str, change: Callable[[Tx, Row, R], None]
) -> Response:
    """A call that changes the task of an open lease."""
    entry, body = wire.node_call(mesh)
    ref = wire.parse_json(model, body)

    def run(tx: Tx) -> str | None:
        task = ledger_tasks.open_attempt(
            tx, call, entry.node_id, ref.task_id, ref.attempt, ref.lease_id
        )
        if task is None:
            return None
        change(tx, task, ref)
        return str(task["state"])

    state = mesh.write(run)
    if state is None:
        raise _stale(ref.task_id, ref.attempt, call)
    return wire.answer(models.ResultAnswer(task_id=ref.task_id, state=state))


def _stale(task_id: str, attempt: int | None, call: str) -> RaeError:
    return RaeError("stale_lease", f"{call}: attempt {attempt or '?'} of {task_id} is over")


def _slots(entry: NodeEntry, given: Any) -> list[str] | None:
    if given is None:
        return None
    names = [name for name in str(given).split(",") if name]
    unknown = [name for name in names if name not in entry.facts.slots]
    if unknown:
        known = ", ".join(entry.facts.slots)
        raise RaeError(
            "invalid_query", f"slot '{unknown[0][:20]}' was not registered; known: {known}"
        )
    return names


def _hung_up() -> Callable[[], bool]:
    """Whether the caller is still there: a task must not go into a closed socket."""
    sock: socket.socket | None = request.environ.get("gunicorn.socket")

    def alive() -> bool:
        if sock is None:
            return True
        try:
            look = select.poll()  # select() knows no descriptor above 1,023
            look.register(sock, select.POLLIN)
            return not look.poll(0) or bool(sock.recv(1, socket.MSG_PEEK))
        except (OSError, ValueError):
            return False

    return alive
