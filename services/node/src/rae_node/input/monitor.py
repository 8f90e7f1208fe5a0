"""The detector's loop: reads devices, keeps one time per seat, answers on a socket.

What it publishes, as JSON, in one message: `since` (its start), `blind` (why it cannot see; empty
when it can), `ignored` (axes that move untouched), `devices` (name, seat, kind) and for each seat
`last`, the time of the last key, button, pointer or stick, and `hands`, whether that was a
keyboard or pointer within the last minute. Times are seconds on CLOCK_MONOTONIC, rounded up to
half a second; which key it was, not even the detector's memory keeps.
"""

from __future__ import annotations

import json
import math
import os
import select
import socket

from rae_node.input.activity import HANDS, SENSOR, Activity
from rae_node.input.devices import nodes as event_nodes

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Callable, Iterable, Iterator, Sequence
    from typing import Protocol

    from rae_node.input.activity import Device, Event

    Identity = tuple[int, int, int, int]

    class Opened(Protocol):
        """devices.Opened, or recorded bytes."""

        fd: int
        device: Device

        def read(self) -> Iterable[Event]: ...
        def locate(self) -> None: ...
        def close(self) -> None: ...

    class Watch(Protocol):
        """devices.Watch."""

        fd: int

        def drain(self) -> None: ...
        def close(self) -> None: ...


GRAIN_S = 0.5
HANDS_S = 60.0
PAUSE_S = 1.0  # after input: who types costs one look a second
NOISE_PAUSE_S = 0.25  # for a device that sends what does not count
SETTLE_S = 2.0  # udev has set owner and seat of a new device by then, on a slow machine, too
_MOST_CLIENTS = 16
_GROUP = "rae-input must be in its group"


class Seat:
    """When a seat was last used."""

    __slots__ = ("hands_at", "last")

    def __init__(self, last: float) -> None:
        self.last, self.hands_at = last, float("-inf")


class Monitor:
    """`step` until the process ends.

    `open_device(path)` raises OSError, ValueError; `clock`: seconds on CLOCK_MONOTONIC.
    """

    def __init__(
        self,
        folder: str,
        listener: socket.socket,
        watch: Watch,
        open_device: Callable[[str], Opened],
        clock: Callable[[], float],
        activity: Activity,
        *,
        nodes: Callable[[str], Sequence[str]] = event_nodes,
    ) -> None:
        self._folder, self._listener, self._watch = folder, listener, watch
        self._open, self._clock, self._activity = open_device, clock, activity
        self._nodes = nodes
        self._since = rounded(clock())
        self._seats: dict[str, Seat] = {}
        self._opened: dict[str, Opened] = {}
        self._noisy: dict[str, float] = {}  # not read before, by path
        self._sensors: dict[str, Identity] = {}
        self._failing: dict[str, float] = {}  # could not be opened since, by path
        self._clients: dict[int, socket.socket] = {}
        self._settle_at: float | None = None
        self._paused_until = float("-inf")
        self._blind = ""
        self._sent = b""
        self._scan(clock())
        self._settle_at = clock() + SETTLE_S

    def step(self, longest_s: float) -> None:
        """Wait for something to happen, at most so long, and deal with it. Raises OSError."""
        now = self._clock()
        poll = select.poll()
        for fd in (self._listener.fileno(), self._watch.fd, *self._clients):
            poll.register(fd, select.POLLIN)
        readable = {}
        due = [longest_s, *self._due(now)]
        if now >= self._paused_until:
            readable = {
                one.fd: path
                for path, one in self._opened.items()
                if now >= self._noisy.get(path, now)
            }
        for fd in readable:
            poll.register(fd, select.POLLIN)
        ready = [fd for fd, _ in poll.poll(max(0, math.ceil(min(due) * 1000)))]
        now = self._clock()
        changed = self._watch.fd in ready
        if changed:
            self._watch.drain()
        if changed or (self._settle_at is not None and now >= self._settle_at):
            self._scan(now)
            young = any(now - since < SETTLE_S for since in self._failing.values())
            self._settle_at = now + SETTLE_S if changed or young else None
        for fd in ready:
            if fd in readable and readable[fd] in self._opened:
                self._read(readable[fd], now)
        self._push()
        for fd in ready:
            if fd in self._clients:
                self._answer(fd)
        if self._listener.fileno() in ready:
            self._accept()

    def _due(self, now: float) -> Iterator[float]:
        """Seconds until something is to be done without a word from outside."""
        if self._settle_at is not None:
            yield self._settle_at - now
        if self._opened and now < self._paused_until:
            yield self._paused_until - now
        for until in self._noisy.values():
            if now < until:
                yield until - now

    def close(self) -> None:
        """Let go of devices, clients and the socket."""
        for path in list(self._opened):
            self._close(path)
        for client in (*self._clients.values(), self._listener):
            client.close()
        self._clients.clear()
        self._watch.close()

    # Devices

    def _scan(self, now: float) -> None:
        """Open what is new, close what is gone, and find out whether all may be read."""
        problem = ""
        found: Sequence[str] = ()
        try:
            found = self._nodes(self._folder)
        except OSError as error:
            problem = f"{self._folder} cannot be read ({error.strerror})"
        for path, opened in list(self._opened.items()):
            if path not in found or is_another(path, opened.fd):
                self._close(path)
        failing: dict[str, float] = {}
        for path in found:
            try:
                if path not in self._opened and not self._add(path, now):
                    continue
                self._opened[path].locate()
                # What is open can still be read; after a restart it could not.
                kept_out = not os.access(path, os.R_OK) and not is_gone(path)
                refused = f"may not be read any more; {_GROUP}" if kept_out else ""
            except (OSError, ValueError) as error:
                failing[path] = self._failing.get(path, now)
                settled = now - failing[path] >= SETTLE_S  # before, udev may not have come to it
                refused = refusal(error) if settled else ""
            if refused:
                problem = problem or f"{path} {refused}"
        self._failing, self._blind = failing, problem

    def _add(self, path: str, now: float) -> bool:
        """Open a device; whether it is one to read. Raises OSError, ValueError."""
        known = self._sensors.pop(path, None)
        if known is not None and known == identity(os.stat(path)):
            self._sensors[path] = known
            return False
        opened = self._open(path)
        if opened.device.kind == SENSOR:
            self._sensors[path] = identity(os.fstat(opened.fd))
            opened.close()
            return False
        self._opened[path] = opened
        # Somebody plugged it in, or makes it to play from afar.
        self._use(opened.device, now)
        return True

    def _close(self, path: str) -> None:
        opened = self._opened.pop(path)
        opened.close()
        self._activity.forget(opened.device)
        self._noisy.pop(path, None)

    def _read(self, path: str, now: float) -> None:
        opened = self._opened[path]
        try:
            events = opened.read()
        except OSError:  # unplugged; another device may have its path already
            self._close(path)
            self._settle_at = self._settle_at or now + SETTLE_S
            return
        if self._activity.used(opened.device, events, now):
            self._use(opened.device, now)
            if opened.device.kind in HANDS:
                self._seats[opened.device.seat].hands_at = now
            self._paused_until = now + PAUSE_S
        else:
            self._noisy[path] = now + NOISE_PAUSE_S

    def _use(self, device: Device, now: float) -> None:
        seat = self._seats.setdefault(device.seat, Seat(self._since))
        seat.last = rounded(now)

    # Clients

    def state(self) -> bytes:
        """What is published."""
        now = self._clock()
        seats = {
            name: {"last": seat.last, "hands": now - seat.hands_at <= HANDS_S}
            for name, seat in self._seats.items()
        }
        devices = [
            [one.device.name, one.device.seat, one.device.kind] for one in self._opened.values()
        ]
        said = {
            "since": self._since, "blind": self._blind, "seats": seats, "devices": devices,
            "ignored": self._activity.ignored,
        }  # fmt: skip
        return json.dumps(said).encode()

    def _push(self) -> None:
        """Tell every client what has changed."""
        said = self.state()
        if said != self._sent:
            self._sent = said
            for fd in list(self._clients):
                self._send(fd, said)

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:  # it has gone again
            return
        if len(self._clients) >= _MOST_CLIENTS:
            client.close()
            return
        client.setblocking(False)
        self._clients[client.fileno()] = client
        self._send(client.fileno(), self.state())

    def _answer(self, fd: int) -> None:
        """Every message is the same question; an empty one is the end."""
        try:
            asked = self._clients[fd].recv(16)
        except OSError:
            asked = b""
        if asked:
            self._send(fd, self.state())
        else:
            self._clients.pop(fd).close()

    def _send(self, fd: int, said: bytes) -> None:
        try:
            self._clients[fd].send(said)
        except OSError:  # gone, or it does not read
            self._clients.pop(fd).close()


def refusal(error: OSError | ValueError) -> str:
    """That a device cannot be opened, why, and the way out."""
    if isinstance(error, PermissionError):
        return f"cannot be opened ({error.strerror}); {_GROUP}"
    why = getattr(error, "strerror", None) or error
    return f"cannot be opened ({why}); unplug that device, or restart rae-input"


def identity(found: os.stat_result) -> Identity:
    """What tells a device's node from a later one at the same path.

    The kernel gives event numbers and, on some file systems, inodes out again. A change of owner or
    mode gives another identity, too.
    """
    return found.st_dev, found.st_ino, found.st_rdev, found.st_ctime_ns


def is_another(path: str, fd: int) -> bool:
    """Whether the node at `path` is not the one that is open as `fd`, whose inode is taken."""
    try:
        return not os.path.samestat(os.stat(path), os.fstat(fd))
    except OSError:  # gone, or out of reach: the caller finds out
        return False


def is_gone(path: str) -> bool:
    """Whether it was unplugged after the folder was listed; a path out of reach is still there."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return True
    except OSError:
        pass
    return False


def rounded(now: float) -> float:
    """Up to the next grain: never finer, and never earlier than it was."""
    return math.ceil(now / GRAIN_S) * GRAIN_S
