"""The node's calls about its work: poll, inputs, ack, progress, log, result, yield."""

from __future__ import annotations

import logging
import select
import socket
from collections.abc import Callable, Iterator
from typing import IO, TYPE_CHECKING, Any, TypeVar

from flask import Response, request
from werkzeug.datastructures import FileStorage
from werkzeug.exceptions import RequestEntityTooLarge
from werkzeug.formparser import MultiPartParser

from rae_control import wire
from rae_control.node_table import NodeEntry
from rae_control.service import attempts
from rae_control.service.attempts import Part
from rae_control.storage.files import PIECE, in_thread
from rae_protocol import models
from rae_protocol.errors import RaeError
from rae_protocol.names import MAX_JSON_BYTES, relative_path

if TYPE_CHECKING:
    from rae_control.mesh.mesh import Mesh

R = TypeVar("R", bound=models.LeaseRef)
PART = "artifacts/"
MAX_PARTS = 300  # a result has 256 artifacts at most
log = logging.getLogger(__name__)


def poll(mesh: Mesh, entry: NodeEntry, values: wire.Query) -> models.Model:
    """Long poll for a task or orders."""
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
    return answer.model_copy(update=mesh.config.periods)


def task_input(
    mesh: Mesh, entry: NodeEntry, values: wire.Query, task_id: str, name: str
) -> Response:
    """A file that the task reads."""
    lease_id = str(values.get("lease_id", ""))
    found = attempts.find_input(mesh, wire.reads(mesh), entry, task_id, lease_id, name)
    return send_blob(mesh, found["sha256"], found["size"])


def result(mesh: Mesh, entry: NodeEntry, body: wire.Body) -> models.Model:
    """How the attempt ended, with its artifacts.

    A repeated one waits until the first is taken, and so do all others of the node: what they cost
    at once is one result's.
    """
    with entry.delivering:
        parts: list[FileStorage] = []
        if request.mimetype == "multipart/form-data":
            boundary = request.mimetype_params.get("boundary", "")
            outcome, parts = in_thread(_parse_multipart, body, boundary, wire.to_close())
        else:
            _check_json_size(body.size)
            outcome = wire.parse_json(models.Result, body)
        sent = [Part(str(part.name)[len(PART) :], part.stream) for part in parts]
        bulk = not parts and body.size > wire.DECODE_HERE_MAX
        return attempts.deliver(mesh, entry, outcome, sent, wire.reads(mesh), bulk=bulk)


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


def _parse_multipart(
    body: wire.Body, boundary: str, streams: list[IO[bytes]]
) -> tuple[models.Result, list[FileStorage]]:
    if not boundary:
        raise RaeError("invalid_body", "the multipart body names no boundary")
    parser = MultiPartParser(
        stream_factory=lambda *_, **__: wire.spooled(streams),
        max_form_memory_size=MAX_JSON_BYTES,
        max_form_parts=MAX_PARTS,
    )
    try:
        form, files = parser.parse(body.stream, boundary.encode("ascii", "replace"), body.size)
    except RequestEntityTooLarge as error:
        most = f"{MAX_JSON_BYTES} bytes of JSON and {MAX_PARTS} parts at most"
        raise RaeError("body_too_large", f"a multipart body has {most}") from error
    except ValueError as error:
        raise RaeError("invalid_body", f"the multipart body cannot be read: {error}") from error
    fields, described = form.getlist("metadata"), files.getlist("metadata")
    if len(fields) + len(described) != 1 or len(form) > len(fields):
        raise RaeError("invalid_body", "send one part named metadata and parts artifacts/<name>")
    text = fields[0].encode() if fields else described[0].read(MAX_JSON_BYTES + 1)
    _check_json_size(len(text))
    outcome = models.parse(models.Result, models.decode(text))
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


def _check_json_size(size: int) -> None:
    """Of a result's JSON, which comes alone or beside artifacts. Raises RaeError."""
    if size > MAX_JSON_BYTES:
        raise RaeError("body_too_large", f"JSON has at most {MAX_JSON_BYTES} bytes")


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
