"""gunicorn's worker with our limits on what strangers and slow lines hold.

Each connection is a visit (core/gate.py); each TLS handshake, body and answer has a time limit. A
stranger whose address has had too much is refused before the application is asked. What is no HTTP
request gets our answer, and its words stay out of the log.
"""

from __future__ import annotations

import errno
import logging
import os
import socket
import ssl
import time
from collections import defaultdict
from contextlib import suppress
from functools import partial
from http import HTTPStatus
from typing import Any
from weakref import WeakValueDictionary

import gevent
from gevent.local import local
from gevent.lock import BoundedSemaphore
from gevent.monkey import get_original
from gunicorn import util
from gunicorn.http.errors import LimitRequestHeaders, LimitRequestLine, ParseException
from gunicorn.workers.ggevent import GeventWorker

from rae_control.core.gate import Gate, Visit
from rae_control.core.limits import Bucket
from rae_protocol.errors import RaeError
from rae_protocol.log import facts
from rae_protocol.models import canonical
from rae_protocol.names import MAX_BLOB_BYTES, MAX_RESULT_BYTES
from rae_protocol.signing import REGISTER_SCHEME

log = logging.getLogger(__name__)
_Socket = get_original("socket", "socket")

# The request line and headers of a connection that has shown no known token (others: keepalive),
# and before these a TLS handshake.
HEAD_S = 10.0
# A small body, and any of a stranger, in all.
SMALL, SMALL_S = 64 * 1024, 10.0
# A larger one: at least so many bytes a second, after a while in which it may be slower. Of an
# answer, the same while for each piece of it.
LEAST_RATE, SLOW_S, LONGEST_S = 1024, 30.0, 3600.0
TOO_SLOW = "the answer was read too slowly"
# What a TLS connection begins with: a record of the handshake.
HANDSHAKE = b"\x16"
# What is read and dropped of a body that was answered early, in bytes and seconds: a socket that is
# closed while bytes lie in it resets the connection, and the answer may be lost with it.
LEFT_OF_KNOWN, LEFT_OF_STRANGERS = (MAX_RESULT_BYTES, 20.0), (MAX_BLOB_BYTES, 10.0)


class Intake:
    """A request's body as it comes in: `wsgi.input`, with a time limit."""

    def __init__(self, request: Any, visit: Visit) -> None:
        self._request, self._body = request, request.body
        self.visit = visit
        headers = dict(request.headers)
        length = headers.get("CONTENT-LENGTH", "")
        self._length = int(length) if length.isdigit() else 0
        self.unread = self._length or int("TRANSFER-ENCODING" in headers)
        self._began: float | None = None

    @property
    def failed(self) -> bool:
        """Where the next request begins is not known (gunicorn asks)."""
        return bool(getattr(self._body, "failed", False))

    def end_after(self) -> None:
        """The connection ends with this answer."""
        self._request.force_close()

    def read(self, size: int | None = None) -> bytes:
        """Up to so many bytes; less only at the end. Raises RaeError `body_too_slow`."""
        if self._began is None:
            self._began = time.monotonic()
        left = self.unread if size is None else min(size, self.unread)
        pieces = []
        while left > 0:
            wanted = min(left, SMALL)
            with gevent.Timeout(self._seconds(wanted), RaeError("body_too_slow")):
                piece = self._body.read(wanted)
            if not piece:
                break
            pieces.append(piece)
            left -= len(piece)
            self.unread -= len(piece)
        return b"".join(pieces)

    def _seconds(self, wanted: int) -> float:
        """Until so many more bytes must be there."""
        come = self._length - self.unread + wanted
        allowed = time_for(self._length, come, known=self.visit.known)
        return max(0.0, allowed - (time.monotonic() - float(self._began or 0.0)))


class Outlet:
    """A connection's socket as an answer goes out: whoever reads too slowly is cut off."""

    def __init__(self, sock: Any, visit: Visit) -> None:
        self._sock, self._visit = sock, visit

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)

    def sendall(self, data: bytes) -> None:
        """Send it all. Raises ConnectionResetError where a piece was not taken in time."""
        # What the kernel holds for a reader is no progress of his, so each piece has its own time.
        seconds = SLOW_S if self._visit.known else SMALL_S
        for at in range(0, len(data), SMALL):
            slow = ConnectionResetError(errno.ECONNRESET, TOO_SLOW)
            with gevent.Timeout(seconds, slow):
                self._sock.sendall(memoryview(data)[at : at + SMALL])


def time_for(length: int, come: int, *, known: bool) -> float:
    """Seconds from a body's start by which so many of its bytes must be there."""
    if length <= SMALL or not known:
        return SMALL_S
    return min(LONGEST_S, SLOW_S + come / LEAST_RATE)


class Worker(GeventWorker):  # type: ignore[misc]
    """Bounds connections; neither echoes nor logs a request that it could not parse."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._gate = Gate(time.monotonic, self.worker_connections)
        self._here = local()
        self._begins: defaultdict[str | None, BoundedSemaphore] = defaultdict(BoundedSemaphore)
        self._handshakes: WeakValueDictionary[str, BoundedSemaphore] = WeakValueDictionary()
        self._lines = Bucket(1.0, 20.0, 20.0, time.monotonic())  # of the log, about strangers

    def handle(self, listener: Any, client: Any, addr: Any) -> None:
        """Serve a connection."""
        address = str(addr[0]) if isinstance(addr, tuple) else ""
        visit = self._here.visit = self._gate.enter(address, partial(_hang_up, client))
        try:
            tls = self.app.tls
            if tls is not None and listener.getsockname()[1] == tls.port:
                client = self._secured(client, tls.context, visit)
            if client is not None:
                super().handle(listener, client, addr)
        finally:
            self._gate.leave(visit)

    def _secured(self, plain: Any, context: ssl.SSLContext, visit: Visit) -> Any:
        """A connection after its TLS handshake; None where that fails or is not done in time."""
        sock = plain
        with suppress(OSError), gevent.Timeout(HEAD_S, False):
            first = plain.recv(1, socket.MSG_PEEK)
            if first == HANDSHAKE:
                # A signature takes a while: of an address one is made in each round of the loop.
                turn = self._handshakes.setdefault(visit.address, BoundedSemaphore())
                with turn:
                    gevent.sleep(0)
                sock = context.wrap_socket(plain, server_side=True, do_handshake_on_connect=False)
                visit.hang_up = partial(_hang_up, sock)
                try:
                    sock.do_handshake()
                except ssl.SSLEOFError:
                    pass  # as who connects and leaves
                except ssl.SSLError as error:
                    self._log("tls_failed", peer=visit.address, cause=str(error.reason))
                else:
                    return sock
            elif first:
                self._log("tls_failed", peer=visit.address, cause="no TLS")
                cause = "this port speaks TLS: write https:// in the URL"
                _answer(plain, HTTPStatus.BAD_REQUEST, RaeError("invalid_request", cause))
                _let_end(plain, *LEFT_OF_STRANGERS)
        sock.close()
        return None

    def timeout_ctx(self) -> gevent.Timeout:
        """For the time until a request's headers are there."""
        return gevent.Timeout(self.cfg.keepalive if self._here.visit.known else HEAD_S, False)

    def handle_request(self, listener_name: Any, req: Any, sock: Any, addr: Any) -> None:
        """Give the request's body its time limit; read on a while if it was not wanted."""
        req.body = intake = Intake(req, self._here.visit)
        try:
            self._admit(intake.visit, req, sock, addr)
            # Of a caller's requests one begins in each round of the loop, however many have come.
            with self._begins[intake.visit.caller]:
                gevent.sleep(0)
            super().handle_request(listener_name, req, Outlet(sock, self._here.visit), addr)
        except ConnectionResetError as error:
            if error.strerror == TOO_SLOW:
                self._log("answer_unread", peer=(addr or ("",))[0])
            raise
        finally:
            if intake.unread:
                _let_end(sock, *(LEFT_OF_KNOWN if intake.visit.known else LEFT_OF_STRANGERS))

    def _admit(self, visit: Visit, req: Any, sock: Any, addr: Any) -> None:
        """Who shows no known token gets what the address has left. Raises StopIteration."""
        shown = [value for name, value in req.headers if name == "AUTHORIZATION"]
        authorization = shown[0] if len(shown) == 1 else ""
        if (caller := self.app.whose(authorization)) is not None:
            visit.recognise(caller)
            return
        wait = visit.ask(registers=authorization.startswith(f"{REGISTER_SCHEME} "))
        if not wait:
            return
        peer, path = (addr or ("",))[0], str(req.path)[:200]
        self._log("request_refused", rc="rate_limited", method=req.method, path=path, peer=peer)
        error = RaeError("rate_limited", "too much without a known token came from this address")
        with suppress(OSError):
            _answer(sock, HTTPStatus.TOO_MANY_REQUESTS, error, retry_after_s=wait)
        raise StopIteration  # the connection ends, or the next request costs as little to ask

    def _log(self, event: str, **attrs: str) -> None:
        if not self._lines.take(time.monotonic()):
            log.warning(event, extra=facts(**attrs))

    def notify(self) -> None:
        """Each second, from the loop that serves: not before it does, nor while it is blocked."""
        super().notify()
        if self.app.tls is not None:
            self.app.tls.renew()
        if self.alive:
            self.app.tell("READY=1\nWATCHDOG=1")

    def handle_exit(self, sig: int, frame: Any) -> None:
        """SIGTERM: end soon. A signal's handler must not wait, a greenlet may."""
        super().handle_exit(sig, frame)
        gevent.spawn(self.app.stopping)

    def handle_error(self, req: Any, client: Any, addr: Any, exc: BaseException) -> None:
        """Answer what gunicorn refuses as everything else is answered."""
        if isinstance(exc, ssl.SSLError):
            self._log("tls_failed", peer=(addr or ("",))[0], cause=str(exc.reason))
            return
        if not isinstance(exc, ParseException):
            super().handle_error(req, client, addr, exc)
            return
        peer, cause = (addr or ("",))[0], type(exc).__name__
        self._log("request_unreadable", peer=peer, cause=cause)
        status = HTTPStatus.BAD_REQUEST
        if isinstance(exc, LimitRequestLine):
            status = HTTPStatus.REQUEST_URI_TOO_LONG
        elif isinstance(exc, LimitRequestHeaders):
            status = HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE
        with suppress(OSError):
            _answer(client, status, RaeError("invalid_request", cause))


def _answer(
    client: Any, status: HTTPStatus, error: RaeError, retry_after_s: float | None = None
) -> None:
    body = canonical(error.body())
    retry = "" if retry_after_s is None else f"Retry-After: {max(1, round(retry_after_s))}\r\n"
    head = (
        f"HTTP/1.1 {status.value} {status.phrase}\r\nConnection: close\r\n{retry}"
        f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n"
    )
    util.write_nonblock(client, head.encode() + body)


def _hang_up(client: Any) -> None:
    # Not gevent's shutdown: it raises in the greenlet that reads, which would be logged as an
    # error. This way it reads the end of the connection.
    with suppress(OSError), _Socket(fileno=os.dup(client.fileno())) as plain:
        plain.shutdown(socket.SHUT_RDWR)


def _let_end(sock: Any, most: int, seconds: float) -> None:
    with suppress(OSError), gevent.Timeout(seconds, False):
        sock.shutdown(socket.SHUT_WR)
        while most > 0 and (piece := sock.recv(SMALL)):
            most -= len(piece)
            gevent.sleep(0)  # recv does not wait on a fast line; others get their turn here
