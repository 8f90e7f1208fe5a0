"""A word to the service manager that started this process (sd_notify)."""

from __future__ import annotations

import socket
from contextlib import suppress


def tell(address: str | None, state: str) -> None:
    """Say it to the socket that NOTIFY_SOCKET named; nothing happens without one."""
    if not address:
        return
    # Not connected and never waiting: a manager that does not listen costs nothing.
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as out, suppress(OSError):
        out.setblocking(False)
        out.sendto(state.encode(), address.replace("@", "\0", 1) if address[0] == "@" else address)
