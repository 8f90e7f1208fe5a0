"""Recorded bytes of input devices, through a named pipe into the real detector's loop.

A pipe `event0` stands for a device; beside it `event0.json` has `name`, `seat`, `kind` and
`absolutes` (by code). `python -m tools.recorded_input SOCKET FOLDER` runs the detector with them.
"""

from __future__ import annotations

import errno
import json
import os
import struct
import sys
import threading
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rae_node.input.__main__ import listen
from rae_node.input.activity import Activity, Device
from rae_node.input.devices import Watch, load_evdev
from rae_node.input.monitor import Monitor

EVENT = struct.Struct("llHHi")  # struct input_event of 64-bit machines
SYN = (0, 0, 0)


class Recorded:
    """Like devices.Opened; the bytes are parsed by evdev."""

    def __init__(self, evdev: Any, path: str) -> None:
        self._evdev = evdev
        note = Path(f"{path}.json")
        said = json.loads(note.read_text())
        if refused := said.get("refused"):
            raise PermissionError(errno.EACCES, refused, path)
        # Both ends: a pipe without a writer would be readable for ever.
        self.fd = os.open(path, os.O_RDWR | os.O_NONBLOCK | os.O_CLOEXEC)
        axes = {int(code): tuple(info) for code, info in said.get("absolutes", {}).items()}
        self.device = Device(said["name"], said["seat"], said["kind"], axes)

    def read(self) -> list[Any]:
        found: list[Any] = []
        while True:
            try:
                events = self._evdev.device_read_many(self.fd)
            except BlockingIOError:
                return found
            found += events

    def locate(self) -> None: ...

    def close(self) -> None:
        os.close(self.fd)


def plug(
    folder: Path, number: int, kind: str, *, name: str = "Device", seat: str = "seat0",
    absolutes: dict[int, tuple[int, ...]] | None = None, refused: str = "",
) -> Path:  # fmt: skip
    """Make a device; the path to `send` to."""
    path = folder / f"event{number}"
    note = {
        "name": name,
        "seat": seat,
        "kind": kind,
        "absolutes": absolutes or {},
        "refused": refused,
    }
    Path(f"{path}.json").write_text(json.dumps(note))
    os.mkfifo(path)
    return path


def unplug(path: Path) -> None:
    """Take it away."""
    path.unlink()
    Path(f"{path}.json").unlink()


def packed(events: Iterable[tuple[int, int, int]]) -> bytes:
    """Type, code and value of each event, as the kernel hands them out."""
    return b"".join(EVENT.pack(0, 0, *event) for event in events)


def send(path: Path, *events: tuple[int, int, int]) -> None:
    """Have the device send events, and the end of the report."""
    out = os.open(path, os.O_RDWR | os.O_NONBLOCK)
    try:
        os.write(out, packed([*events, SYN]))
    finally:
        os.close(out)


def nodes(folder: str) -> list[str]:
    """The pipes, without the notes beside them."""
    return [str(path) for path in sorted(Path(folder).glob("event*")) if not path.suffix]


def monitor(socket: Path, folder: Path, activity: Activity | None = None) -> Monitor:
    """The detector's loop over a folder of pipes."""
    evdev = load_evdev()
    return Monitor(
        str(folder), listen(str(socket)), Watch(str(folder)),
        lambda path: Recorded(evdev, path), time.monotonic, activity or Activity(), nodes=nodes,
    )  # fmt: skip


@contextmanager
def in_a_thread(socket: Path, folder: Path) -> Iterator[None]:
    """The detector beside a test, while the block runs."""
    loop, over = monitor(socket, folder), threading.Event()

    def run() -> None:
        while not over.is_set():
            loop.step(0.05)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
        loop.close()


def main() -> None:
    """Run it."""
    socket, folder = map(Path, sys.argv[1:3])
    values = dict(word.split("=", 1) for word in sys.argv[3:])
    activity = Activity(*(float(values[key]) for key in ("calibrate_s", "gap_s") if key in values))
    loop = monitor(socket, folder, activity)
    while True:
        loop.step(20.0)


if __name__ == "__main__":
    main()
