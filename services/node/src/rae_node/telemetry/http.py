"""GET /healthz and /metrics on loopback: one small request at a time, and nothing to change."""

from __future__ import annotations

import contextlib
import socket
import threading
import time
from collections.abc import Callable, Mapping
from http import HTTPStatus
from urllib.parse import urlsplit

from rae_node.telemetry.log import EventLog

_ADDRESS = "127.0.0.1"
_LOCAL = frozenset({"127.0.0.1", "localhost", "::1"})
_MAX_HEAD = 8192
_PATIENCE_S = 1.0  # for a whole request: who sends it slowly must not keep the others waiting

Page = Callable[[], tuple[str, str]]


def respond(head: bytes, pages: Mapping[str, Page]) -> tuple[HTTPStatus, str, str]:
    """Status, content type and body for a request's head."""
    plain = "text/plain; charset=utf-8"
    lines = head.decode("latin-1").split("\r\n")
    words = lines[0].split(" ")
    if len(words) != 3 or not words[2].startswith("HTTP/1."):
        return HTTPStatus.BAD_REQUEST, plain, "This is no HTTP/1 request; send GET /healthz.\n"
    fields = (line.partition(":") for line in lines[1:])
    hosts = [value.strip() for name, _, value in fields if name.strip().lower() == "host"]
    if len(hosts) != 1 or not _is_local(hosts[0]):
        # A page in the owner's browser can point its own name at 127.0.0.1 and would read this.
        text = "The Host header must name this machine; ask 127.0.0.1 or localhost.\n"
        return HTTPStatus.FORBIDDEN, plain, text
    if words[0] != "GET":
        return HTTPStatus.METHOD_NOT_ALLOWED, plain, "Only GET is known here; nothing was done.\n"
    page = pages.get(words[1].partition("?")[0])
    if page is None:
        text = f"Nothing is here; ask for {' or '.join(pages)}.\n"
        return HTTPStatus.NOT_FOUND, plain, text
    return HTTPStatus.OK, *page()


def _is_local(host: str) -> bool:
    try:
        return urlsplit(f"//{host}").hostname in _LOCAL
    except ValueError:
        return False


class Monitor:
    """Listens on a port of 127.0.0.1 (0: a free one)."""

    def __init__(self, port: int, pages: Mapping[str, Page], log: EventLog) -> None:
        """Listen. Raises OSError."""
        self._pages, self._log = pages, log
        self._closed = threading.Event()
        self._socket = socket.create_server((_ADDRESS, port), backlog=16)
        self.port: int = self._socket.getsockname()[1]

    def start(self) -> None:
        """Begin to answer."""
        threading.Thread(target=self._serve, name="monitor", daemon=True).start()

    def close(self) -> None:
        """Stop listening."""
        self._closed.set()
        with contextlib.suppress(OSError):
            self._socket.shutdown(socket.SHUT_RDWR)  # a close alone ends no accept()
        self._socket.close()

    def _serve(self) -> None:
        while True:
            try:
                connection, _ = self._socket.accept()
            except ConnectionError:  # it went before it was taken
                continue
            except OSError:
                if self._closed.wait(1.0):  # out of file descriptors, perhaps: better in a while
                    return
                continue
            with connection, contextlib.suppress(OSError):
                self._answer(connection)

    def _answer(self, connection: socket.socket) -> None:
        try:
            status, kind, body = respond(_read_head(connection), self._pages)
        except OSError:
            raise
        except Exception as error:  # one request's trouble is not the agent's
            self._log.error("monitor_failed", error=repr(error))
            status, kind, body = HTTPStatus.INTERNAL_SERVER_ERROR, "text/plain", "See the log.\n"
        data = body.encode()
        allow = "Allow: GET\r\n" if status == HTTPStatus.METHOD_NOT_ALLOWED else ""
        head = (
            f"HTTP/1.1 {status.value} {status.phrase}\r\nContent-Type: {kind}\r\n"
            f"Content-Length: {len(data)}\r\nCache-Control: no-store\r\n"
            f"X-Content-Type-Options: nosniff\r\n{allow}Connection: close\r\n\r\n"
        )
        connection.settimeout(_PATIENCE_S)
        connection.sendall(head.encode() + data)


def _read_head(connection: socket.socket) -> bytes:
    """Up to the empty line. Raises OSError (TimeoutError)."""
    limit, data = time.monotonic() + _PATIENCE_S, b""
    while b"\r\n\r\n" not in data and len(data) <= _MAX_HEAD:
        connection.settimeout(max(0.001, limit - time.monotonic()))
        piece = connection.recv(4096)
        if not piece:
            break
        data += piece
        if time.monotonic() > limit:
            raise TimeoutError("the request took too long")
    return data.partition(b"\r\n\r\n")[0]
