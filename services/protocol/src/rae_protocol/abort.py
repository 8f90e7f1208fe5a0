"""Blocking calls that another thread can abort, wherever they block.

A call runs in a thread of its own, and its HTTP connections are known here: an abort shuts them
down, which wakes a TLS handshake and every read and write. A name look-up and a TCP connect cannot
be woken; their thread is left to its own time limit, and gets no connection any more.
"""

from __future__ import annotations

import contextlib
import os
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextvars import ContextVar
from typing import Any, ClassVar, Generic, TypeVar

from requests.adapters import HTTPAdapter
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool

T = TypeVar("T")
_GRACE_S = 0.2  # for an aborted call to close its files


class Aborted(Exception):
    """The call was aborted; whether it had an effect is not known."""


class _Call(Generic[T]):
    """One call, its thread, and its connections."""

    def __init__(self, action: Callable[[], T], changed: threading.Condition) -> None:
        self.done = False
        self.error: BaseException | None = None
        self._action, self._changed = action, changed
        self._lock = threading.Lock()
        self._over = False
        self._sockets: list[socket.socket] = []
        self._value: list[T] = []

    def use(self, connection: socket.socket) -> None:
        """A connection of this call. Raises ConnectionAbortedError when it is over."""
        with self._lock:
            if self._over:
                raise ConnectionAbortedError("the call was aborted")
            # A duplicate: TLS takes the descriptor away from its first object.
            self._sockets.append(socket.socket(fileno=os.dup(connection.fileno())))

    def abort(self) -> None:
        """Wake its thread."""
        with self._lock:
            self._over = True
            for one in self._sockets:
                with contextlib.suppress(OSError):
                    one.shutdown(socket.SHUT_RDWR)

    def run(self) -> None:
        """In its own thread."""
        _CALL.set(self)
        try:
            self._value.append(self._action())
        except BaseException as error:
            self.error = error
        with self._lock:
            self._over = True
            for one in self._sockets:
                one.close()
            self._sockets.clear()
        with self._changed:
            self.done = True
            self._changed.notify_all()

    def outcome(self) -> T:
        """What the action returned, or raises what it raised."""
        if self.error is not None:
            raise self.error
        return self._value[0]


_CALL: ContextVar[_Call[Any] | None] = ContextVar("call", default=None)


class Aborter:
    """Runs calls for one owner, who may abort them all, now and later. Thread-safe."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._aborted = False

    def abort(self) -> None:
        """From now on every call ends at once; returns immediately."""
        with self._changed:
            self._aborted = True
            self._changed.notify_all()

    def wait(self, seconds: float) -> bool:
        """Until an abort, at most so long; whether there was one."""
        with self._changed:
            return self._changed.wait_for(lambda: self._aborted, seconds)

    def run(self, action: Callable[[], T], check: Callable[[], float] | None = None) -> T:
        """What the action returns, or raises what it raises.

        `check` is called at once and whenever the seconds that it returned last are over; it may
        raise, which aborts this call alone. Raises Aborted, RuntimeError when there is no thread.
        """
        call = _Call(action, self._changed)
        threading.Thread(target=call.run, name="call", daemon=True).start()
        try:
            if self._ended(call, check):
                return call.outcome()
        except BaseException:
            if not call.done:
                self._leave(call)
            raise
        self._leave(call)
        raise Aborted("the call was aborted")

    def _ended(self, call: _Call[T], check: Callable[[], float] | None) -> bool:
        """Wait; whether it ended by itself."""
        while True:
            pause = None if check is None else check()
            with self._changed:
                self._changed.wait_for(lambda: call.done or self._aborted, pause)
                if call.done or self._aborted:
                    return not self._aborted

    def _leave(self, call: _Call[T]) -> None:
        call.abort()
        with self._changed:
            self._changed.wait_for(lambda: call.done, _GRACE_S)


def within(limit_s: float, action: Callable[[], T]) -> T:
    """What the action returns. Raises what it raises, TimeoutError after so many seconds."""
    end = time.monotonic() + limit_s

    def check() -> float:
        rest = end - time.monotonic()
        if rest <= 0:
            raise TimeoutError(f"not done within {limit_s:g} s")
        return rest

    return Aborter().run(action, check)


class Abortable:
    """Beside a connection class of urllib3: the call that uses a connection knows of it."""

    def _new_conn(self) -> socket.socket:
        made: socket.socket = super()._new_conn()  # type: ignore[misc]
        try:
            _use(made)
        except OSError:
            made.close()
            raise
        return made

    def request(self, *args: Any, **options: Any) -> None:
        """One more request; the connection may be of an earlier call."""
        kept = getattr(self, "sock", None)
        if kept is not None:
            _use(kept)
        super().request(*args, **options)  # type: ignore[misc]


def _use(connection: socket.socket) -> None:
    call = _CALL.get()
    if call is not None:
        call.use(connection)


class _Http(Abortable, HTTPConnection):
    pass


class _Https(Abortable, HTTPSConnection):
    pass


class _HttpPool(HTTPConnectionPool):
    ConnectionCls = _Http


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls = _Https


class AbortableAdapter(HTTPAdapter):
    """For a requests session. Outside of `Aborter.run` it is as any other."""

    pools: ClassVar[Mapping[str, type[HTTPConnectionPool]]] = {
        "http": _HttpPool, "https": _HttpsPool,
    }  # fmt: skip

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = dict(self.pools)
