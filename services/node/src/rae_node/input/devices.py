"""The kernel's input devices: found, opened and read; and word of what is plugged or changed."""

from __future__ import annotations

import ctypes
import importlib.util
import os
from importlib.machinery import PathFinder

from rae_node.input.activity import EV_ABS, Device, kind_of

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Sequence
    from typing import Any

    from rae_node.input.activity import Event

FOLDER = "/dev/input"
_UDEV = "/run/udev/data"
_NUMBERS = "/sys/dev/char"
# IN_ATTRIB, IN_MOVED_TO, IN_CREATE, IN_DELETE, IN_DELETE_SELF: inotify(7).
_CHANGES = 0x4 | 0x80 | 0x100 | 0x200 | 0x400
_AT_ONCE = 64  # events that evdev reads in one call
_MOST_READS = 64


def load_evdev() -> Any:
    """evdev's C module alone: its package would bring asyncio, and 11 MB more. Raises OSError."""
    package = importlib.util.find_spec("evdev")
    if package is None or not package.submodule_search_locations:
        raise OSError("the Python package evdev is missing; install evdev-binary")
    spec = PathFinder.find_spec("_input", list(package.submodule_search_locations))
    if spec is None or spec.loader is None:
        raise OSError("evdev has no compiled module for this Python; install evdev-binary")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


class Opened:
    """A device that is read; `fileno` never blocks."""

    def __init__(self, evdev: Any, path: str) -> None:
        """Open it. Raises OSError, ValueError."""
        self._evdev = evdev
        self.fd = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            codes = evdev.ioctl_capabilities(self.fd)
            absolutes = dict(codes.get(EV_ABS, ()))
            kind = kind_of({**codes, EV_ABS: absolutes}, evdev.ioctl_EVIOCGPROP(self.fd))
            number = os.fstat(self.fd).st_rdev
            name = name_of(evdev, self.fd, number)
            self.device = Device(name, seat_of(number), kind, absolutes)
        except BaseException:
            os.close(self.fd)
            raise

    def read(self) -> list[Event]:
        """What has happened since. Raises OSError when it was unplugged."""
        found: list[Event] = []
        for _ in range(_MOST_READS):
            try:
                events = self._evdev.device_read_many(self.fd)
            except BlockingIOError:
                break
            found += events
            if len(events) < _AT_ONCE:
                break
        return found

    def locate(self) -> None:
        """Ask udev for the seat again, which it may not have set at first. Raises OSError."""
        self.device.seat = seat_of(os.fstat(self.fd).st_rdev)

    def close(self) -> None:
        """Let go of it."""
        os.close(self.fd)


def name_of(evdev: Any, fd: int, device: int, folder: str = _NUMBERS) -> str:
    """The name of an open device. Raises OSError."""
    try:
        return str(evdev.ioctl_devinfo(fd)[4])
    except UnicodeDecodeError:
        # Of the name, the port or the serial number: evdev decodes them together, strictly.
        path = f"{folder}/{os.major(device)}:{os.minor(device)}/device/name"
        with open(path, encoding="utf-8", errors="replace") as name:
            return name.read().rstrip("\n")


def seat_of(device: int, folder: str = _UDEV) -> str:
    """The seat that udev gives a device; `seat0` is where it names none (sd-login(3))."""
    path = f"{folder}/c{os.major(device)}:{os.minor(device)}"
    try:
        with open(path, encoding="utf-8", errors="replace") as known:
            for line in known:
                if line.startswith("E:ID_SEAT="):
                    return line.strip().partition("=")[2] or "seat0"
    except OSError:  # no udev here, or it has not come to this device yet
        pass
    return "seat0"


class Watch:
    """inotify on a folder, or on its parent as long as the folder is not there."""

    def __init__(self, folder: str) -> None:
        """Raises OSError."""
        self._folder = folder
        self._libc = ctypes.CDLL(None, use_errno=True)
        self.fd = self._libc.inotify_init1(os.O_NONBLOCK | os.O_CLOEXEC)
        if self.fd < 0:
            number = ctypes.get_errno()
            raise OSError(number, f"inotify: {os.strerror(number)}")
        self.renew()

    def renew(self) -> None:
        """Watch what is there now. Raises OSError."""
        for folder in (self._folder, os.path.dirname(self._folder)):
            if self._libc.inotify_add_watch(self.fd, os.fsencode(folder), _CHANGES) >= 0:
                return
        number = ctypes.get_errno()
        raise OSError(number, f"{self._folder} cannot be watched: {os.strerror(number)}")

    def close(self) -> None:
        """Stop watching."""
        os.close(self.fd)

    def drain(self) -> None:
        """Take what it has to say; the caller looks for itself. Raises OSError."""
        try:
            while os.read(self.fd, 65536):
                pass
        except BlockingIOError:
            pass
        self.renew()


def nodes(folder: str) -> Sequence[str]:
    """The event devices there, none where there is no such folder. Raises OSError."""
    try:
        names = os.listdir(folder)
    except FileNotFoundError:
        return ()
    return [f"{folder}/{name}" for name in sorted(names) if name.startswith("event")]


def evdev_opener() -> Any:
    """A function that opens the device of a path, or raises OSError, ValueError. Raises OSError."""
    evdev = load_evdev()
    return lambda path: Opened(evdev, path)
