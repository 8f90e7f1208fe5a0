"""qemu's control socket (QMP): its keys and pointers, its devices, its state."""

from __future__ import annotations

import json
import socket
from pathlib import Path
from typing import Any, Literal

from tests.lab.preflight import LabError
from tools.devmesh import wait_until

Button = Literal["left", "middle", "right", "wheel-up", "wheel-down"]


class Qmp:
    """One connection; every call waits for its answer. Raises LabError with what qemu says."""

    def __init__(self, path: Path) -> None:
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.settimeout(120)  # a snapshot may be on its way to a slow disk

        def connected() -> bool:
            try:
                self._socket.connect(str(path))
            except (FileNotFoundError, ConnectionRefusedError):
                return False
            return True

        wait_until(connected, 20, f"qemu listens at {path}")
        self._lines = self._socket.makefile("rw", encoding="utf-8")
        self._lines.readline()  # its greeting
        self.call("qmp_capabilities")

    def call(self, command: str, **arguments: Any) -> Any:
        """What qemu returns for a command."""
        self._lines.write(json.dumps({"execute": command, "arguments": arguments}) + "\n")
        self._lines.flush()
        while line := self._lines.readline():
            answer = json.loads(line)
            if "error" in answer:
                raise LabError(f"qemu refuses {command}: {answer['error']['desc']}")
            if "return" in answer:
                return answer["return"]
        raise LabError(f"qemu ended before it answered {command}")

    def monitor(self, line: str) -> str:
        """What a command of the human monitor prints."""
        return str(self.call("human-monitor-command", **{"command-line": line}))

    def state(self) -> str:
        """`running`, `suspended`, `paused`, …"""
        return str(self.call("query-status")["status"])

    def key(self, code: str) -> None:
        """Press and release a key by qemu's name: "a", "ret", "shift", …

        It goes to the keyboard that was plugged in last.
        """
        for down in (True, False):
            self._send("key", {"down": down, "key": {"type": "qcode", "data": code}})

    def move(self, x: int, y: int = 0) -> None:
        """Move the mouse by so many counts."""
        self.call("input-send-event", events=[
            {"type": "rel", "data": {"axis": axis, "value": value}}
            for axis, value in (("x", x), ("y", y)) if value
        ])  # fmt: skip

    def button(self, name: Button = "left") -> None:
        """Press and release a button of the mouse."""
        for down in (True, False):
            self._send("btn", {"down": down, "button": name})

    def plug(self, driver: str, name: str) -> None:
        """Plug a USB device in: "usb-kbd", "usb-mouse", "usb-tablet", …"""
        self.call("device_add", driver=driver, id=name, bus="xhci.0")

    def unplug(self, name: str) -> None:
        """Pull it out."""
        self.call("device_del", id=name)

    def close(self) -> None:
        """Hang up."""
        self._lines.close()
        self._socket.close()

    def _send(self, kind: str, data: dict[str, Any]) -> None:
        self.call("input-send-event", events=[{"type": kind, "data": data}])
