"""A proxy between clients and control that answers in control's place, as captive portals do.

It passes requests and answers on unchanged. For each request a rule may choose a replacement of
the answer: the request never reaches control, or control acts on it and only its answer is
replaced.
"""

from __future__ import annotations

import contextlib
import random
import select
import socket
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Any
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


class Intermediary:
    """Listens on a port of its own for control's URL; use it as a context manager.

    `rule` may be changed at any time; `replaced` counts the answers by kind.
    """

    def __init__(self, control: str, rule: Rule = pass_on) -> None:
        self.control, self.rule = urlsplit(control).netloc, rule
        self.replaced, self.lock = Counter[str](), threading.Lock()
        self._server = _Server(("127.0.0.1", 0), partial(_Exchange, self))
        self.url = f"http://127.0.0.1:{self._server.server_port}"

    def __enter__(self) -> Intermediary:
        threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True).start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._server.shutdown()
        self._server.server_close()


class _Server(ThreadingHTTPServer):
    request_queue_size = 128


class _Exchange(BaseHTTPRequestHandler):
    """The requests of one connection; each goes to control on a connection of its own."""

    protocol_version = "HTTP/1.1"
    disable_nagle_algorithm = True

    def __init__(self, between: Intermediary, *given: Any) -> None:
        self._between = between
        super().__init__(*given)

    def log_message(self, *_words: object) -> None:
        """What passes is not worth a line."""

    def handle(self) -> None:
        """Until the client hangs up, however it does."""
        with contextlib.suppress(ConnectionError):
            super().handle()

    def _request(self) -> None:
        control = HTTPConnection(self._between.control)
        try:
            self._answer(control)
        except (OSError, HTTPException):
            self.close_connection = True  # each side sees what became of the other
        finally:
            control.close()

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = do_PATCH = _request

    def _answer(self, control: HTTPConnection) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        instead = self._between.rule(Request(self.command, self.path.partition("?")[0]))
        if instead is not None:
            with self._between.lock:
                self._between.replaced[instead.answer] += 1
        if instead is None or instead.reaches:
            control.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                control.putheader(name, value)
            control.endheaders(body or None)
            self._wait(control)
            answer = control.getresponse()
            if instead is None:
                self._pass_on(answer)
                return
            answer.read()
        self.wfile.write(instead.raw(self.command))

    def _wait(self, control: HTTPConnection) -> None:
        """Until control answers, or the client hangs up. Raises ConnectionResetError."""
        poll = select.poll()
        poll.register(control.sock, select.POLLIN)
        poll.register(self.connection, select.POLLIN)
        while control.sock.fileno() not in {number for number, _ in poll.poll()}:
            # Only its end is of interest: bytes of its next request wait for their turn.
            if not self.connection.recv(1, socket.MSG_PEEK):
                raise ConnectionResetError
            poll.unregister(self.connection)

    def _pass_on(self, answer: HTTPResponse) -> None:
        lines = [f"HTTP/1.1 {answer.status} {answer.reason}"]
        lines += [f"{name}: {value}" for name, value in answer.getheaders()]
        self.wfile.write("\r\n".join([*lines, "", ""]).encode("latin-1"))
        while piece := answer.read1(_PIECE):
            self.wfile.write(b"%x\r\n%s\r\n" % (len(piece), piece) if answer.chunked else piece)
        if answer.chunked:
            self.wfile.write(b"0\r\n\r\n")
        # An answer without a length, or one that was cut off, ends with the connection.
        self.close_connection |= answer.will_close or bool(answer.length)
