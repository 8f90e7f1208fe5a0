"""systemd-logind over D-Bus: its sessions, and word of every change."""

from __future__ import annotations

import contextlib
import select
import socket
import threading
import time
from collections.abc import Callable
from typing import Any

from jeepney import (
    DBusAddress,
    DBusErrorResponse,
    MatchRule,
    Properties,
    message_bus,
    new_method_call,
)
from jeepney.bus import get_bus
from jeepney.io.blocking import DBusConnection, prep_socket
from jeepney.wrappers import unwrap_msg

from rae_node.errors import NodeError
from rae_node.guard.sessions import Session
from rae_node.guard.words import shown

_NAME, _ROOT = "org.freedesktop.login1", "/org/freedesktop/login1"
_MANAGER = DBusAddress(_ROOT, _NAME, "org.freedesktop.login1.Manager")
_TIMEOUT_S = 2.0
_APART_S = 0.25  # looks because of signals: any user can cause a thousand a second
_MUCH = 1 << 20
_REREAD_S = 25.0  # a change without a signal is seen after that
_ENDED = ("NoSuchSession", "UnknownObject", "UnknownMethod")
_FAILURES = (OSError, DBusErrorResponse, EOFError, ValueError, LookupError, TypeError, KeyError)
_RULES = (
    MatchRule(type="signal", sender=_NAME, interface="org.freedesktop.login1.Manager"),
    MatchRule(
        type="signal", sender=_NAME, interface="org.freedesktop.DBus.Properties",
        member="PropertiesChanged", path_namespace=f"{_ROOT}/session",
    ),
)  # fmt: skip


class LoginBus:
    """Sessions, read again within a quarter of a second after a signal, and after 25 seconds.

    Any thread may ask. `woken` is called by another thread when something has changed.
    """

    def __init__(self, woken: Callable[[], None] = lambda: None) -> None:
        self._woken = woken
        self._connection: DBusConnection | None = None
        self._sessions: list[Session] = []
        self._read_at = float("-inf")
        self._changed = threading.Event()
        self._asking = threading.Lock()
        self._listens = False

    def sessions(self) -> list[Session]:
        """Every session that logind knows. Raises NodeError when it does not answer."""
        with self._asking:
            try:
                self._listen()
                if self._changed.is_set() or time.monotonic() - self._read_at > _REREAD_S:
                    self._changed.clear()
                    self._sessions = self._read()
                    self._read_at = time.monotonic()
            except _FAILURES as error:
                raise self._silent(error) from error
            return self._sessions

    def seats(self) -> list[str]:
        """Names of the seats that can show a desktop. Raises NodeError."""
        found = []
        with self._asking:
            try:
                for name, path in self._call(new_method_call(_MANAGER, "ListSeats"))[0]:
                    address = DBusAddress(path, _NAME, "org.freedesktop.login1.Seat")
                    if self._call(Properties(address).get("CanGraphical"))[0][1]:
                        found.append(str(name))
            except _FAILURES as error:
                raise self._silent(error) from error
        return sorted(found)

    def close(self) -> None:
        """Let go of the bus; the next question connects again."""
        connection, self._connection = self._connection, None
        self._read_at = float("-inf")
        if connection is not None:
            with contextlib.suppress(OSError):
                connection.close()

    def _silent(self, error: Exception) -> NodeError:
        self.close()
        why = str(error) or type(error).__name__
        return NodeError(
            "blind",
            f"systemd-logind does not answer over D-Bus ({why}); "
            "see `systemctl status dbus systemd-logind`",
        )

    def _read(self) -> list[Session]:
        for last in (False, True):
            try:
                found = self._call(new_method_call(_MANAGER, "ListSessions"))[0]
                return [self._session(path) for *_, path in found]
            except DBusErrorResponse as error:
                if last or not error.name.endswith(_ENDED):  # one ended between two questions
                    raise
        raise AssertionError("unreachable")

    def _session(self, path: str) -> Session:
        address = DBusAddress(path, _NAME, "org.freedesktop.login1.Session")
        return session_of(self._call(Properties(address).get_all())[0])

    def _call(self, message: Any) -> Any:
        if self._connection is None:
            self._connection = _connect()
        reply = self._connection.send_and_get_reply(message, timeout=_TIMEOUT_S)
        return unwrap_msg(reply)

    def _listen(self) -> None:
        """Have a thread wait for signals, unless one does."""
        if self._listens:
            return
        connection = _connect()
        try:
            for rule in _RULES:
                answer = connection.send_and_get_reply(
                    message_bus.AddMatch(rule), timeout=_TIMEOUT_S
                )
                unwrap_msg(answer)
        except BaseException:
            connection.close()
            raise
        self._listens = True
        self._changed.set()
        threading.Thread(
            target=self._wait, args=[connection], name="login-signals", daemon=True
        ).start()

    def _wait(self, connection: DBusConnection) -> None:
        """Wait for signals. They are not parsed: that there was one is all that counts."""
        pause = select.poll()
        pause.register(connection.sock, 0)  # only its end cuts a pause short
        with contextlib.suppress(OSError), connection:
            while connection.sock.recv(_MUCH):
                with contextlib.suppress(BlockingIOError):
                    while connection.sock.recv(_MUCH, socket.MSG_DONTWAIT):
                        pass
                self._changed.set()
                self._woken()
                pause.poll(_APART_S * 1000)
        # The bus ended: the next question finds out why.
        self._listens = False
        self._changed.set()
        self._woken()


def session_of(properties: dict[str, tuple[str, Any]]) -> Session:
    """A session from org.freedesktop.login1.Session's properties, without control characters.

    Its user chooses some of them. Raises LookupError, TypeError.
    """

    def value(name: str) -> Any:
        return properties[name][1]

    def text(name: str) -> str:
        return shown(str(value(name)))

    return Session(
        id=text("Id"), uid=int(value("User")[0]), user=text("Name"),
        cls=text("Class"), type=text("Type"), state=text("State"),
        active=bool(value("Active")), remote=bool(value("Remote")), tty=text("TTY"),
        seat=shown(str(value("Seat")[0])), vt=int(value("VTNr")), service=text("Service"),
        scope=text("Scope"), desktop=text("Desktop"),
        locked=bool(value("LockedHint")),
    )  # fmt: skip


class _Connection(DBusConnection):  # type: ignore[misc]
    """One whose first words, too, have a time limit."""

    def receive(self, *, timeout: float | None = None) -> Any:
        return super().receive(timeout=_TIMEOUT_S if timeout is None else timeout)


def _connect() -> DBusConnection:
    bus = prep_socket(get_bus("SYSTEM"), timeout=_TIMEOUT_S)
    try:
        return _Connection(bus)
    except BaseException:
        bus.close()
        raise
