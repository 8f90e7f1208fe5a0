"""Keys, buttons, pointers and sticks: what rae-input says of them over its socket."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from pathlib import Path

from rae_node.errors import NodeError
from rae_node.guard import inputs
from rae_node.guard.inputs import InputState
from rae_node.guard.policy import Reading
from rae_protocol.clock import Clock
from rae_protocol.errors import in_words

_LARGEST = 65536
_SUSPENDED_S = 0.2  # more than this between two looks, and the machine was asleep


class InputLink:
    """A connection to rae-input, made when it is needed. Every method may be called by any thread.

    `woken` is called when the detector has news: input, a lost permission, its end. `patience_s`:
    how long an answer may take.
    """

    def __init__(
        self, path: Path, woken: Callable[[], None] = lambda: None, *, patience_s: float = 0.4
    ) -> None:
        self._path, self.woken, self._patience_s = path, woken, patience_s
        self._connecting = threading.Lock()
        self._news = threading.Condition()
        self._socket: socket.socket | None = None
        self._state: InputState | None = None
        self._count = 0

    def ask(self) -> InputState:
        """The detector's state as it is now. Raises NodeError when it does not answer."""
        with self._connecting:
            connection = self._socket or self._connect()
            with self._news:
                before = self._count
            try:
                connection.send(b"?")
            except OSError as error:
                raise self._silent(_reason(error)) from error
        with self._news:
            if not self._news.wait_for(
                lambda: self._count > before or self._socket is not connection, self._patience_s
            ):
                raise self._silent("it hangs")
            if self._state is None or self._socket is not connection:
                raise self._silent("it has ended")
            return self._state

    def close(self) -> None:
        """Let go of the detector."""
        with self._news:
            connection, self._socket = self._socket, None
        if connection is not None:
            connection.shutdown(socket.SHUT_RDWR)

    def _connect(self) -> socket.socket:
        connection = socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        try:
            connection.settimeout(self._patience_s)  # the listener's queue may be full
            connection.connect(os.fspath(self._path))
            connection.settimeout(None)
        except PermissionError as error:
            connection.close()
            raise NodeError(
                "blind",
                f"{self._path} may be read by root and the agent alone; "
                "ask as root, or ask the agent: `rae-node status`",
            ) from error
        except OSError as error:
            connection.close()
            raise self._silent(_reason(error)) from error
        with self._news:
            self._socket, self._state = connection, None
        threading.Thread(
            target=self._listen, args=[connection], name="input-link", daemon=True
        ).start()
        return connection

    def _silent(self, why: str) -> NodeError:
        return NodeError(
            "blind",
            f"the input detector does not answer at {self._path} ({why}); "
            "`systemctl start rae-input` starts it, `systemctl status rae-input` says why it ended",
        )

    def _listen(self, connection: socket.socket) -> None:
        """Take what it says until it ends."""
        with connection:
            while True:
                try:
                    message = connection.recv(_LARGEST)
                    state = inputs.parse(message) if message else None
                except (OSError, ValueError, LookupError, TypeError):
                    state = None
                with self._news:
                    before, self._state = self._state, state
                    self._count += 1
                    if state is None and self._socket is connection:
                        self._socket = None
                    self._news.notify_all()
                if state != before:
                    self.woken()
                if state is None:
                    return


class InputSource:
    """Present within `idle_s()` seconds after the last input on any seat."""

    name = "input"

    def __init__(self, link: InputLink, idle_s: Callable[[], float], clock: Clock) -> None:
        self._link, self._idle_s, self._clock = link, idle_s, clock
        self._asleep_s: float | None = None
        self._woke_at = float("-inf")

    def read(self) -> Reading:
        """Ask. Raises NodeError when there is no answer, or the detector cannot see."""
        state = self._link.ask()
        if state.blind:
            raise NodeError("blind", state.blind)
        now = self._clock.monotonic()
        asleep_s = self._clock.boot() - now
        if self._asleep_s is not None and asleep_s - self._asleep_s > _SUSPENDED_S:
            self._woke_at = now
        self._asleep_s = asleep_s
        return inputs.reading(state, now, self._woke_at, self._idle_s())


def _reason(error: OSError) -> str:
    """A socket that is missing is created by the detector: the way out is to start that."""
    return "no such file" if isinstance(error, FileNotFoundError) else in_words(error)
