"""Sends the log of an attempt to control while it grows."""

from __future__ import annotations

from collections.abc import Callable
from typing import IO

from rae_protocol.errors import RaeError
from rae_protocol.names import MAX_LOG_BYTES, MAX_LOG_CHUNK


class LogTail:
    """Where control's copy of the log ends. Control keeps a log in memory at first: after a power
    cut it has less than it answered for, and names the offset to go on from.

    `send(offset, piece)` raises RaeError. `tell` runs a call, acts on its error, and returns
    whether there was none.
    """

    def __init__(
        self, send: Callable[[int, bytes], None], tell: Callable[[Callable[[], None]], bool]
    ) -> None:
        self._send, self._tell = send, tell
        self._at = 0

    def follow(self, log: IO[bytes]) -> None:
        """Send what control does not have yet; what cannot be sent now is left for the next time.

        Raises OSError.
        """
        went_back = False
        while self._at < MAX_LOG_BYTES:
            log.seek(self._at)
            offset, piece = self._at, log.read(MAX_LOG_CHUNK)
            if not piece:
                return
            if not self._tell(lambda: self._piece(piece)):  # noqa: B023 - called within this round
                if went_back or self._at >= offset:
                    return
                went_back = True

    def _piece(self, piece: bytes) -> None:
        try:
            self._send(self._at, piece)
        except RaeError as error:
            theirs = error.detail.get("offset") if error.rc == "log_gap" else None
            if isinstance(theirs, int):
                self._at = max(0, min(self._at, theirs))
            raise
        self._at += len(piece)
