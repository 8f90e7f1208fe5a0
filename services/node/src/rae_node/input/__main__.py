"""`python -m rae_node.input SOCKET [NAME=VALUE…]`, as rae-input.service runs it.

Values: `folder=/dev/input`, `calibrate_s=600`, `gap_s=20`.
"""

from __future__ import annotations

import os
import signal
import socket
import sys
import time

from rae_node.input.activity import Activity
from rae_node.input.devices import FOLDER, Watch, evdev_opener
from rae_node.input.monitor import Monitor
from rae_protocol import notify

_WATCHDOG_S = 20.0  # the unit gives 60
_MODE = 0o660


def listen(path: str) -> socket.socket:
    """The socket; who may connect, folder and group decide. Raises OSError."""
    if os.path.lexists(path):
        os.unlink(path)
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    before = os.umask(0o777 & ~_MODE)
    try:
        listener.bind(path)
    finally:
        os.umask(before)
    listener.listen()
    listener.setblocking(False)
    return listener


def main(argv: list[str]) -> int:
    """Run until a signal ends the process."""
    if not argv or argv[0].startswith("-"):
        print(__doc__, file=sys.stderr)
        return 2
    # Default actions: nothing is kept that would have to be saved.
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    values = dict(word.split("=", 1) for word in argv[1:])
    folder = values.get("folder", FOLDER)
    activity = Activity(float(values.get("calibrate_s", 600)), float(values.get("gap_s", 20)))
    manager = os.environ.get("NOTIFY_SOCKET")
    try:
        monitor = Monitor(
            folder, listen(argv[0]), Watch(folder), evdev_opener(), time.monotonic, activity
        )
        notify.tell(manager, "READY=1")
        fed_at = time.monotonic()
        while True:
            monitor.step(_WATCHDOG_S)
            if time.monotonic() - fed_at >= _WATCHDOG_S / 2:
                notify.tell(manager, "WATCHDOG=1")
                fed_at = time.monotonic()
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        print(f"rae-input: {where}{error.strerror or error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
