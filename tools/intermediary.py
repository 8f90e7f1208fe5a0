"""A proxy between clients and control that answers in control's place, as captive portals do.

It passes every byte on unchanged. For each request a rule may choose a replacement of the answer:
the request never reaches control, or control acts on it and only its answer is replaced.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from types import TracebackType
from urllib.parse import urlsplit

_PIECE = 64 * 1024
_PORTAL = b"<!doctype html><html><title>Log in</title><p>Accept the terms to go on.</html>"
ANSWERS: dict[str, tuple[str, bytes]] = {
    "302": ("302 Found", b""),
    "200 HTML": ("200 OK", _PORTAL),
    "403": ("403 Forbidden", _PORTAL),
    "404": ("404 Not Found", _PORTAL),
    "413": ("413 Content Too Large", _PORTAL),
    "empty 200": ("200 OK", b""),
}


@dataclass(frozen=True, slots=True)
class Request:
    """What a rule decides by: `path` without the query."""

    method: str
    path: str


@dataclass(frozen=True, slots=True)
class Instead:
    """One of ANSWERS, or a status line of one's own with a body in JSON.

    `reaches`: whether control gets the request all the same.
    """

    answer: str
    reaches: bool
    json: bytes = b""

    def raw(self, method: str) -> bytes:
        """The answer as it goes over the wire."""
        status, body = ANSWERS.get(self.answer, (self.answer, self.json))
        kind = "application/json" if self.json else "text/html"
        head = f"HTTP/1.1 {status}\r\nContent-Type: {kind}\r\nContent-Length: {len(body)}\r\n"
        if status.startswith("302"):
            head += "Location: http://portal.invalid/login\r\n"
        return f"{head}\r\n".encode() + (b"" if method == "HEAD" else body)


EVERY: Sequence[Instead] = [
    Instead(answer, reaches) for answer in ANSWERS for reaches in (False, True)
]
Rule = Callable[[Request], Instead | None]


def pass_on(_request: Request) -> None:
    """Nothing is replaced."""


def at_random(rng: random.Random, share: float) -> Rule:
    """Replace the answers of this share of the requests, by every kind."""
    return lambda _request: rng.choice(EVERY) if rng.random() < share else None


class Script:
    """Replaces the answers of the requests that `concerns` picks, in this order, and then none.

    `left` are the replacements that are still to come.
    """

    def __init__(
        self, concerns: Callable[[Request], bool], given: Iterable[Instead] = EVERY
    ) -> None:
        self.left = list(given)
        self._concerns, self._lock = concerns, threading.Lock()

    def __call__(self, request: Request) -> Instead | None:
        with self._lock:
            return self.left.pop(0) if self.left and self._concerns(request) else None


class _Gone(Exception):
    """One of the two sides closed its connection."""


class Intermediary:
    """Listens on a port of its own for control's URL; use it as a context manager.

    `rule` may be changed at any time; `replaced` counts the answers by kind.
    """

    def __init__(self, control: str, rule: Rule = pass_on) -> None:
        parts = urlsplit(control)
        self._control = (str(parts.hostname), int(parts.port or 80))
        self.rule, self.replaced = rule, Counter[str]()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=128)
        self.url = f"http://127.0.0.1:{self._listener.getsockname()[1]}"
        self._lock, self._open = threading.Lock(), set[socket.socket]()

    def __enter__(self) -> Intermediary:
        threading.Thread(target=self._accept, name="intermediary", daemon=True).start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:  # fmt: skip
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()
        with self._lock:
            for sock in self._open:
                with contextlib.suppress(OSError):
                    sock.shutdown(socket.SHUT_RDWR)

    def _accept(self) -> None:
        with contextlib.suppress(OSError):  # the listener was closed
            while True:
                client = self._listener.accept()[0]
                threading.Thread(target=self._serve, args=(client,), daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        """One connection of a client, with one of its own to control."""
        with client, socket.socket() as control:
            with self._lock:
                self._open |= {client, control}
            try:
                control.connect(self._control)
                for sock in (client, control):
                    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
                ours, theirs = _Stream(client, control), _Stream(control, client)
                while self._exchange(ours, theirs):
                    pass
            except (OSError, _Gone):
                pass  # both are closed, so that each side sees what became of the other
            finally:
                with self._lock:
                    self._open -= {client, control}

    def _exchange(self, client: _Stream, control: _Stream) -> bool:
        """One request and its answer; whether another may follow on these connections."""
        head = client.head()
        method, target = head.split(b" ", 2)[:2]
        request = Request(method.decode("latin-1"), target.decode("latin-1").partition("?")[0])
        body = b"".join(client.body(head, has_body=True, until_closed=False))
        instead = self.rule(request)
        if instead is not None:
            with self._lock:
                self.replaced[instead.answer] += 1
        if instead is None or instead.reaches:
            control.sock.sendall(head + body)
            answer = control.head()
            pieces = control.body(answer, has_body=request.method != "HEAD", until_closed=True)
            if instead is None:
                client.sock.sendall(answer)
            for piece in pieces:
                if instead is None:
                    client.sock.sendall(piece)
            ends = b"connection: close" in answer.lower()
            if instead is None and ends:
                return False
        else:
            ends = False
        if instead is not None:
            client.sock.sendall(instead.raw(request.method))
        return not ends


class _Stream:
    """What one side sends; waiting for it ends when the other side hangs up."""

    def __init__(self, sock: socket.socket, other: socket.socket) -> None:
        self.sock, self._other = sock, other
        self._buffer = b""

    def head(self) -> bytes:
        """The first line and the headers, with the empty line after them."""
        while b"\r\n\r\n" not in self._buffer:
            self._buffer += self._more()
        head, _, self._buffer = self._buffer.partition(b"\r\n\r\n")
        return head + b"\r\n\r\n"

    def body(self, head: bytes, *, has_body: bool, until_closed: bool) -> Iterator[bytes]:
        """What comes after the headers, as it comes and as it is framed."""
        fields = {
            name.strip().lower(): value.strip()
            for name, _, value in (line.partition(b":") for line in head.split(b"\r\n")[1:])
        }
        status = head.split(b" ", 2)[1]
        if not has_body or status in {b"204", b"304"}:
            return
        if fields.get(b"transfer-encoding", b"").lower() == b"chunked":
            yield from self._chunks()
        elif b"content-length" in fields:
            yield from self._exactly(int(fields[b"content-length"]))
        elif until_closed:
            with contextlib.suppress(_Gone):
                while True:
                    yield self._take() or self._more()
            raise _Gone

    def _chunks(self) -> Iterator[bytes]:
        while True:
            while b"\r\n" not in self._buffer:
                self._buffer += self._more()
            line, _, self._buffer = self._buffer.partition(b"\r\n")
            yield line + b"\r\n"
            size = int(line.partition(b";")[0], 16)
            yield from self._exactly(size + 2)
            if size == 0:
                return

    def _exactly(self, size: int) -> Iterator[bytes]:
        while size > 0:
            piece = self._take(size) or self._more()
            piece, self._buffer = piece[:size], piece[size:] + self._buffer
            size -= len(piece)
            yield piece

    def _take(self, most: int = _PIECE) -> bytes:
        piece, self._buffer = self._buffer[:most], self._buffer[most:]
        return piece

    def _more(self) -> bytes:
        """The next bytes. Raises _Gone, OSError."""
        poll = select.poll()
        poll.register(self.sock, select.POLLIN)
        poll.register(self._other, select.POLLIN)
        while True:
            ready = {number for number, _ in poll.poll()}
            if self.sock.fileno() in ready:
                piece = self.sock.recv(_PIECE)
                if not piece:
                    raise _Gone
                return piece
            # Only its end is of interest: bytes of the other side wait for their turn.
            if not self._other.recv(1, socket.MSG_PEEK):
                raise _Gone
            poll.unregister(self._other)
