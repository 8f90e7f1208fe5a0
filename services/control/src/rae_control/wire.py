"""What every path needs: the body with its limits, the caller, the query, the answer."""

from __future__ import annotations

import hashlib
import re
import tempfile
from collections.abc import Callable, Hashable, Mapping
from typing import IO, TYPE_CHECKING, TypeAlias, TypeVar, cast

from flask import Response, current_app, g, request

from rae_control.auth.authenticator import Caller, Signed, Superseded
from rae_control.core.gate import Budget, Visit
from rae_control.node_table import NodeEntry
from rae_control.service import takeover
from rae_control.service.reads import Reads
from rae_control.storage.files import in_thread
from rae_protocol import models
from rae_protocol.errors import RaeError
from rae_protocol.names import (
    MAX_REGISTER_BYTES,
    MAX_RESULT_BYTES,
    MAX_WAIT_S,
    SHA256_PATTERN,
)
from rae_protocol.signing import ANSWER_HEADER, SIGNATURE_HEADER, Answered, signed_answer

if TYPE_CHECKING:
    from rae_control.mesh.mesh import Mesh

M = TypeVar("M", bound=models.Model)
T = TypeVar("T")
Query: TypeAlias = "Mapping[str, float | int | str]"
SPOOL_ABOVE = 512 * 1024
SMALL_PIECE, LARGE_PIECE = 16 * 1024, 256 * 1024
DECODE_HERE_MAX = 64 * 1024
# Bodies that are held at once, in memory or in an unnamed file: of callers with a known token (each
# two of the largest results, whose parts are held beside them), and of strangers (by address).
# Answers to known callers, until they are read, may be as much again.
KNOWN_EACH, KNOWN_ALL = 2 * MAX_RESULT_BYTES, 16 * MAX_RESULT_BYTES
STRANGERS_EACH, STRANGERS_ALL = 4 * MAX_REGISTER_BYTES, 64 * MAX_REGISTER_BYTES
_NO_LIMITS = Visit("", lambda: None)


class Bodies:
    """Who holds how much; kept in `app.extensions["bodies"]`."""

    def __init__(self) -> None:
        self.known = Budget(KNOWN_EACH, KNOWN_ALL)
        self.answers = Budget(KNOWN_EACH, KNOWN_ALL)
        self.strangers = Budget(STRANGERS_EACH, STRANGERS_ALL)


class Body:
    """A request's bytes with their SHA-256: in memory when small, else in an unnamed file."""

    def __init__(self, stream: IO[bytes], size: int, digest: str) -> None:
        self.stream, self.size, self.sha256 = stream, size, digest

    def bytes(self) -> bytes:
        """All of it."""
        self.stream.seek(0)
        return self.stream.read()


def leave_unread(response: Response) -> Response:
    """After every request: a body that was not read ends the connection."""
    stream = request.environ["wsgi.input"]
    if getattr(stream, "unread", 0):
        stream.end_after()
    return response


def registered(node_id: str) -> None:
    """A node has shown that it is enrolled: its connection is no stranger's."""
    _visit().registered(f"node {node_id}")


def _visit() -> Visit:
    # gunicorn's worker gives each body its connection (server/gunicorn_worker.py).
    visit: Visit = getattr(request.environ["wsgi.input"], "visit", _NO_LIMITS)
    return visit


def read_body(limit: int) -> Body:
    """Read the request's body, once it is known who calls (`node_call`, `role_call`).

    Raises RaeError `length_required` for chunked bodies, `body_too_large` beyond the limit,
    `rate_limited` while too many bodies of this caller are held, `body_too_slow`.
    """
    if request.environ.get("HTTP_TRANSFER_ENCODING"):
        raise RaeError("length_required")
    length = request.content_length or 0
    stream: IO[bytes] = request.environ["wsgi.input"]
    if length > limit:
        raise RaeError("body_too_large", f"{length} bytes came, {limit} are allowed", limit=limit)
    digest = hashlib.sha256()
    target = spooled(to_close())
    left = length
    while left > 0:
        wanted = min(left, SMALL_PIECE if length <= SPOOL_ABOVE else LARGE_PIECE)
        # What comes, not what was announced: who announces much and sends little takes little.
        _hold(wanted)
        piece = stream.read(wanted)
        if not piece:
            raise RaeError("invalid_body", f"the body ended {left} bytes early")
        left -= len(piece)
        if length > SPOOL_ABOVE:
            in_thread(_keep, target, digest.update, piece)
        else:
            _keep(target, digest.update, piece)
    target.seek(0)
    return Body(target, length, digest.hexdigest())


def _keep(target: IO[bytes], hashed: Callable[[bytes], None], piece: bytes) -> None:
    hashed(piece)
    target.write(piece)


def _hold(size: int) -> None:
    """Count so many bytes more to this request. Raises RaeError `rate_limited`."""
    bodies: Bodies = current_app.extensions["bodies"]
    who: Hashable = g.get("who")
    budget = bodies.strangers if who is None else bodies.known
    who = who or request.remote_addr
    if not budget.take(who, size):
        raise RaeError("rate_limited", "too many bodies are on their way", retry_after_s=1)
    held: tuple[Budget, Hashable, int] = g.get("held", (budget, who, 0))
    g.held = (*held[:2], held[2] + size)


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
    budget, who, size = g.pop("held", (None, None, 0))
    if size:
        budget.give(who, size)


def signed(body: Body) -> Signed:
    """What a signature of this request must cover: the target exactly as it was sent."""
    environ = request.environ
    target = environ.get("RAW_URI") or environ.get("REQUEST_URI") or request.full_path
    return Signed(request.method, str(target), body.sha256, _signs_answer)


def _signs_answer(key: bytes, nonce: str) -> None:
    g.answer_key = key, nonce


def sign_answer(mesh: Mesh, response: Response) -> Response:
    """Sign the answer to a request whose signature was right."""
    key, nonce = g.pop("answer_key", (None, ""))
    if key is None:
        return response
    if response.is_streamed:
        digest = response.headers["ETag"].strip('"')  # names the content (work.send_blob)
    else:
        body = response.get_data()
        large = len(body) > DECODE_HERE_MAX
        digest = in_thread(_sha256, body) if large else _sha256(body)
    content_type = request.environ.get("CONTENT_TYPE", "")
    answered = Answered(nonce, content_type, response.status_code, digest)
    fields = signed_answer(key, answered, mesh.clock.wall())
    response.headers[ANSWER_HEADER] = fields.header()
    return response


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def node_call(mesh: Mesh, limit: int, each: int) -> tuple[NodeEntry, Body]:
    """Authenticate a node and read its body: from its headers first, then over the raw bytes.

    It counts as one call, and as one more for every `each` bytes of the body.
    Raises RaeError `rate_limited` and those of auth and `read_body`.
    """
    authorization = request.headers.get("Authorization")
    try:
        signature = request.headers.get(SIGNATURE_HEADER)
        session = mesh.auth.session(authorization, signature, request.content_length or 0)
        if session.node_id is not None:  # else a stranger, until the signature shows more
            g.who = ("node", session.node_id)
        body = read_body(limit)
        entry = mesh.auth.node(session, signed(body))
    except Superseded as error:
        raise takeover.called(mesh, error, request.remote_addr) from error
    wait = entry.bucket.take(mesh.clock.boot(), 1 + body.size // each)
    if wait:
        raise RaeError("rate_limited", f"node {entry.node_id}", retry_after_s=wait)
    return entry, body


def role_call(mesh: Mesh, need: str) -> Caller:
    """Authenticate RAE or an operator, by the headers: before `read_body`."""
    caller = mesh.auth.caller(request.headers.get("Authorization"), need)
    g.who = ("role", caller.name)
    return caller


def reads(mesh: Mesh) -> Reads:
    """Reads of the ledger in the caller's turn."""
    return Reads(mesh, g.get("who"))


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


def query(allowed: Mapping[str, type]) -> Query:
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


def limit(values: Query, default: int, most: int) -> int:
    """The `limit` parameter, 1 to `most`."""
    wanted = int(values.get("limit", default))
    if not wanted:
        raise RaeError("invalid_query", "'limit' is at least 1")
    return min(wanted, most)


def wait_seconds(values: Query) -> float:
    """The `wait` parameter, 0 to 60 s."""
    wait = float(values.get("wait", 0.0))
    if wait > MAX_WAIT_S:
        raise RaeError("invalid_query", f"'wait' is at most {MAX_WAIT_S:g} seconds")
    return wait


def is_sha256(text: str) -> bool:
    """Whether this is a SHA-256 in lower-case hex."""
    return re.fullmatch(SHA256_PATTERN, text) is not None
