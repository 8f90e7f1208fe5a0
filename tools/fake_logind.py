"""A system bus with logind alone on it: D-Bus as jeepney speaks it, over a real socket."""

from __future__ import annotations

import socket
import threading
from contextlib import suppress
from pathlib import Path
from types import TracebackType
from typing import Any

from jeepney import (
    DBusAddress,
    HeaderFields,
    MessageType,
    Parser,
    new_error,
    new_method_return,
    new_signal,
)

ROOT = "/org/freedesktop/login1"
_SIGNATURES = {
    "Id": "s", "User": "(uo)", "Name": "s", "Class": "s", "Type": "s", "State": "s",
    "Active": "b", "Remote": "b", "TTY": "s", "Seat": "(so)", "VTNr": "u", "Service": "s",
    "Scope": "s", "Desktop": "s", "LockedHint": "b",
}  # fmt: skip


def session(number: str, **changes: Any) -> dict[str, Any]:
    """An owner's desktop on seat0."""
    return {
        "Id": number, "User": (1000, f"{ROOT}/user/_1000"), "Name": "anna", "Class": "user",
        "Type": "wayland", "State": "active", "Active": True, "Remote": False, "TTY": "tty2",
        "Seat": ("seat0", f"{ROOT}/seat/seat0"), "VTNr": 2, "Service": "gdm-password",
        "Scope": f"session-{number}.scope", "Desktop": "GNOME", "LockedHint": False,
        **changes,
    }  # fmt: skip


class FakeLogind:
    """Use it as a context manager; `address` is for DBUS_SYSTEM_BUS_ADDRESS.

    `silent` answers nothing; `ghosts` are listed once more often than they can be asked for.
    """

    def __init__(self, folder: Path) -> None:
        self.sessions: dict[str, dict[str, Any]] = {}
        self.seats = {"seat0": True}
        self.silent = False
        self.ghosts: list[str] = []
        self.reads = 0
        self._path = folder / "bus"
        self._listener = socket.socket(socket.AF_UNIX)
        self._clients: list[socket.socket] = []
        self._matched: list[socket.socket] = []
        self._serial = 1000

    @property
    def address(self) -> str:
        return f"unix:path={self._path}"

    def __enter__(self) -> FakeLogind:
        self._listener.bind(str(self._path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.end()

    def end(self) -> None:
        """The bus is gone."""
        for one in (self._listener, *self._clients):
            with suppress(OSError):
                one.shutdown(socket.SHUT_RDWR)
            one.close()
        self._path.unlink(missing_ok=True)

    def tell(self, member: str = "SessionNew") -> None:
        """Send a signal of the manager's to everyone who asked for signals."""
        manager = DBusAddress(ROOT, interface="org.freedesktop.login1.Manager")
        self._serial += 1
        signal = new_signal(manager, member, "so", ("2", f"{ROOT}/session/_32"))
        for client in self._matched:
            with suppress(OSError):
                client.sendall(signal.serialise(self._serial))

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                client, _ = self._listener.accept()
                self._clients.append(client)
                threading.Thread(target=self._serve, args=[client], daemon=True).start()

    def _serve(self, client: socket.socket) -> None:
        said = b""
        with suppress(OSError):
            while b"BEGIN\r\n" not in said:
                said = client.recv(4096)
                if b"AUTH" in said:
                    client.sendall(b"OK 0123456789abcdef0123456789abcdef\r\n")
                elif b"NEGOTIATE_UNIX_FD" in said:
                    client.sendall(b"ERROR\r\n")
            parser, serial = Parser(), 1
            data = said.partition(b"BEGIN\r\n")[2]
            while data or (data := client.recv(65536)):
                for message in parser.feed(data):
                    if message.header.message_type is MessageType.method_call and not self.silent:
                        serial += 1
                        if message.header.fields[HeaderFields.member] == "AddMatch":
                            self._matched = [*{*self._matched, client}]
                        client.sendall(self._reply(message).serialise(serial))
                data = b""

    def _reply(self, message: Any) -> Any:
        fields = message.header.fields
        member, path = fields[HeaderFields.member], fields.get(HeaderFields.path, "")
        if member == "Hello":
            return new_method_return(message, "s", (":1.1",))
        if member == "ListSessions":
            self.reads += 1
            listed = [*self.sessions, *self.ghosts]
            self.ghosts = []
            every = [(one, 1000, "anna", "seat0", f"{ROOT}/session/{one}") for one in listed]
            return new_method_return(message, "a(susso)", (every,))
        if member == "ListSeats":
            every_seat = [(name, f"{ROOT}/seat/{name}") for name in self.seats]
            return new_method_return(message, "a(so)", (every_seat,))
        name = path.rpartition("/")[2]
        if member == "GetAll" and name in self.sessions:
            body = {key: (_SIGNATURES[key], value) for key, value in self.sessions[name].items()}
            return new_method_return(message, "a{sv}", (body,))
        if member == "Get" and name in self.seats:
            return new_method_return(message, "v", (("b", self.seats[name]),))
        if member == "AddMatch":
            return new_method_return(message)
        return new_error(message, "org.freedesktop.DBus.Error.UnknownObject", "s", ("gone",))
