"""What every path needs: the body with its limits, the caller, the query, the answer."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Mapping
from typing import IO, TYPE_CHECKING, TypeVar, cast

from flask import Response, g, request

from rae_control.auth import Caller, Signed
from rae_control.files import PIECE, in_thread
from rae_control.nodes import NodeEntry
from rae_protocol import models
from rae_protocol.errors import RaeError
from rae_protocol.names import MAX_JSON_BYTES, MAX_WAIT_S, SHA256_PATTERN
from rae_protocol.signing import SIGNATURE_HEADER

if TYPE_CHECKING:
    from rae_control.mesh import Mesh

M = TypeVar("M", bound=models.Model)
_DRAIN_MAX = 64 * PIECE
SPOOL_ABOVE = 512 * 1024
DECODE_HERE_MAX = 64 * 1024


class Body:
    """A request's bytes with their SHA-256: in memory when small, else in an unnamed file."""

    def __init__(self, stream: IO[bytes], size: int, digest: str) -> None:
        self.stream, self.size, self.sha256 = stream, size, digest

    def bytes(self) -> bytes:
        """All of it."""
        self.stream.seek(0)
        return self.stream.read()


def read_body(limit: int) -> Body:
    """Read the request's body.

    Raises RaeError `length_required` for chunked bodies, `body_too_large` beyond the limit (after
    reading a bounded rest, so that the client gets to see the answer).
    """
    if request.environ.get("HTTP_TRANSFER_ENCODING"):
        raise RaeError("length_required")
    length = request.content_length or 0
    stream: IO[bytes] = request.environ["wsgi.input"]
    if length > limit:
        left = min(length, _DRAIN_MAX)
        while left > 0 and (piece := stream.read(min(PIECE, left))):
            left -= len(piece)
        raise RaeError("body_too_large", f"{length} bytes came, {limit} are allowed", limit=limit)
    digest = hashlib.sha256()
    target = spooled(to_close())
    left = length
    while left > 0:
        piece = stream.read(min(PIECE, left))
        if not piece:
            raise RaeError("invalid_body", f"the body ended {left} bytes early")
        left -= len(piece)
        if length > SPOOL_ABOVE:
            in_thread(digest.update, piece)
            in_thread(target.write, piece)
        else:
            digest.update(piece)
            target.write(piece)
    target.seek(0)
    return Body(target, length, digest.hexdigest())


def to_close() -> list[IO[bytes]]:
    """The streams that end with this request."""
    streams: list[IO[bytes]] = g.setdefault("streams", [])
    return streams


def spooled(streams: list[IO[bytes]]) -> IO[bytes]:
    """A new stream, in memory while small, that is closed with those others."""
    stream = cast("IO[bytes]", tempfile.SpooledTemporaryFile(max_size=SPOOL_ABOVE))  # noqa: SIM115
    streams.append(stream)
    return stream


def close_streams(_error: BaseException | None) -> None:
    """Close what this request opened; Flask calls it at the request's end."""
    for stream in g.pop("streams", ()):
        stream.close()


def signed(body: Body) -> Signed:
    """What a signature of this request must cover: the target exactly as it was sent."""
    environ = request.environ
    target = environ.get("RAW_URI") or environ.get("REQUEST_URI") or request.full_path
    return Signed(request.method, str(target), body.sha256)


def node_call(mesh: Mesh, limit: int = MAX_JSON_BYTES) -> tuple[NodeEntry, Body]:
    """Authenticate a node and read its body. Raises RaeError `rate_limited` and those of auth."""
    body = read_body(limit)
    entry = mesh.auth.node(
        request.headers.get("Authorization"), request.headers.get(SIGNATURE_HEADER), signed(body)
    )
    wait = entry.bucket.take(mesh.clock.boot())
    if wait:
        raise RaeError("rate_limited", f"node {entry.node_id}", retry_after_s=wait)
    return entry, body


def role_call(mesh: Mesh, need: str) -> Caller:
    """Authenticate RAE or an operator."""
    return mesh.auth.caller(request.headers.get("Authorization"), need)


def parse_json(model: type[M], body: Body, *, empty: bool = False) -> M:
    """The JSON body as a model; `empty` takes no body as `{}`.

    Raises RaeError `unsupported_media`, `invalid_json`, `invalid_body`.
    """
    if body.size == 0 and empty:
        return models.parse(model, {})
    if request.mimetype != "application/json":
        raise RaeError("unsupported_media", f"Content-Type is {request.mimetype or 'missing'}")
    return models.parse(model, decode(body))


def decode(body: Body) -> object:
    """The body's JSON value; a large one in a thread, so that other greenlets go on."""
    if body.size > DECODE_HERE_MAX:
        return in_thread(models.decode, body.bytes())
    return models.decode(body.bytes())


def answer(model: models.Model, status: int = 200) -> Response:
    """A model as the response."""
    return Response(models.encode(model), status, mimetype="application/json")


def query(allowed: Mapping[str, type]) -> dict[str, float | int | str]:
    """The query's parameters, each at most once, with their types.

    Raises RaeError `invalid_query`.
    """
    out: dict[str, float | int | str] = {}
    for name in request.args:
        values = request.args.getlist(name)
        if name not in allowed:
            raise RaeError("invalid_query", f"'{name[:50]}' is unknown", known=sorted(allowed))
        if len(values) > 1:
            raise RaeError("invalid_query", f"'{name}' stands there twice")
        out[name] = _convert(name, values[0], allowed[name])
    return out


def _convert(name: str, text: str, kind: type) -> float | int | str:
    if kind is str:
        return text
    try:
        # int() and float() take more than digits ("1_0", " 7", "nan"); only plain ones are meant.
        if not text.replace(".", "", 1).isascii() or not text.replace(".", "", 1).isdigit():
            raise ValueError
        value: float | int = kind(text)
    except ValueError as error:
        raise RaeError("invalid_query", f"'{name}' must be a number, 0 or more") from error
    if value > 2**53:
        raise RaeError("invalid_query", f"'{name}' is too large")
    return value


def limit(values: Mapping[str, float | int | str], default: int, most: int) -> int:
    """The `limit` parameter, 1 to `most`."""
    wanted = int(values.get("limit", default))
    if not wanted:
        raise RaeError("invalid_query", "'limit' is at least 1")
    return min(wanted, most)


def wait_seconds(values: Mapping[str, float | int | str]) -> float:
    """The `wait` parameter, 0 to 60 s."""
    wait = float(values.get("wait", 0.0))
    if wait > MAX_WAIT_S:
        raise RaeError("invalid_query", f"'wait' is at most {MAX_WAIT_S:g} seconds")
    return wait


def is_sha256(text: str) -> bool:
    """Whether this is a SHA-256 in lower-case hex."""
    return re.fullmatch(SHA256_PATTERN, text) is not None
