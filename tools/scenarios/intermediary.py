"""A proxy between clients and control that answers in control's place, as captive portals do.

It passes every byte on unchanged. For each request a rule may choose a replacement of the answer:
the request never reaches control, or control acts on it and only its answer is replaced.
"""

from __future__ import annotations

import asyncio
import random
import socket
import threading
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from types import TracebackType
from typing import Any, TypeVar, cast
from urllib.parse import urlsplit

T = TypeVar("T")
_PIECE, _HEAD, _ENDLESS = 64 * 1024, 2**20, 2**62
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


class _Reader(asyncio.StreamReader):
    """What one side sends; `gone` is set when that side has hung up."""

    def __init__(self) -> None:
        super().__init__(_HEAD)
        self.gone = asyncio.Event()

    def feed_eof(self) -> None:
        """Called at the end of the stream."""
        super().feed_eof()
        self.gone.set()

    def set_exception(self, exc: Exception) -> None:
        """Called when the connection is lost."""
        super().set_exception(exc)
        self.gone.set()


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
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="intermediary", daemon=True)

    def __enter__(self) -> Intermediary:
        self._thread.start()
        return self

    def __exit__(
        self, _kind: type[BaseException] | None, _error: BaseException | None,
        _trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()

    def _run(self) -> None:
        loop = self._loop
        asyncio.set_event_loop(loop)

        def accepted() -> asyncio.StreamReaderProtocol:
            return asyncio.StreamReaderProtocol(_Reader(), self._serve)

        server = loop.run_until_complete(loop.create_server(accepted, sock=self._listener))
        loop.run_forever()
        server.close()
        open_ones = asyncio.all_tasks(loop)
        for task in open_ones:
            task.cancel()
        loop.run_until_complete(asyncio.gather(*open_ones, return_exceptions=True))
        loop.close()

    async def _serve(self, client: asyncio.StreamReader, answers: asyncio.StreamWriter) -> None:
        """One connection of a client, with one of its own to control."""
        control = _Reader()
        protocol = asyncio.StreamReaderProtocol(control)
        try:
            transport, _ = await self._loop.create_connection(lambda: protocol, *self._control)
            asks = asyncio.StreamWriter(transport, protocol, control, self._loop)
            try:
                while await self._exchange(cast("_Reader", client), answers, control, asks):
                    pass
            finally:
                asks.close()
        except (OSError, asyncio.IncompleteReadError, asyncio.CancelledError):
            pass  # at the end, or both are closed, so that each side sees what became of the other
        finally:
            answers.close()

    async def _exchange(
        self, client: _Reader, answers: asyncio.StreamWriter, control: _Reader,
        asks: asyncio.StreamWriter,
    ) -> bool:  # fmt: skip
        """One request and its answer; whether another may follow on these connections."""
        head, body = await _unless_gone(_whole(client), control)
        method, target = head.split(b" ", 2)[:2]
        request = Request(method.decode("latin-1"), target.decode("latin-1").partition("?")[0])
        instead, goes_on = self.rule(request), True
        if instead is not None:
            self.replaced[instead.answer] += 1
        if instead is None or instead.reaches:
            asks.write(head + body)
            await asks.drain()
            answer = await _unless_gone(control.readuntil(b"\r\n\r\n"), client)
            goes_on = b"connection: close" not in answer.lower()
            if instead is None:
                answers.write(answer)
            async for piece in _body(control, answer, of_head=request.method == "HEAD"):
                if instead is None:
                    answers.write(piece)
                    await answers.drain()
        if instead is not None:
            answers.write(instead.raw(request.method))
        await answers.drain()
        return goes_on


async def _unless_gone(work: Coroutine[Any, Any, T], other: _Reader) -> T:
    """What comes, as long as the other side does not hang up. Raises ConnectionResetError."""
    coming, gone = asyncio.create_task(work), asyncio.create_task(other.gone.wait())
    try:
        await asyncio.wait({coming, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not coming.done():
            raise ConnectionResetError
        return coming.result()
    finally:
        coming.cancel()
        gone.cancel()


async def _whole(client: _Reader) -> tuple[bytes, bytes]:
    """A request: the first line with the headers, and its body."""
    head = await client.readuntil(b"\r\n\r\n")
    return head, b"".join([piece async for piece in _body(client, head)])


async def _body(reader: _Reader, head: bytes, *, of_head: bool = False) -> AsyncIterator[bytes]:
    """What comes after the headers, as it comes and as it is framed."""
    first, *lines = head.split(b"\r\n")
    fields = {
        name.strip().lower(): value.strip()
        for name, _, value in (line.partition(b":") for line in lines)
    }
    if of_head or first.split(b" ", 2)[1] in {b"204", b"304"}:
        return
    if fields.get(b"transfer-encoding", b"").lower() == b"chunked":
        size = 1
        while size:
            line = await reader.readuntil(b"\r\n")
            size = int(line.partition(b";")[0], 16)
            yield line + await reader.readexactly(size + 2)
        return
    # An answer without a length goes on until control closes the connection.
    left = int(fields.get(b"content-length", _ENDLESS if first.startswith(b"HTTP/") else 0))
    while left:
        piece = await reader.read(min(left, _PIECE))
        if not piece:
            raise ConnectionResetError
        left -= len(piece)
        yield piece
