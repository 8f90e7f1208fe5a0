"""Plain HTTP connections that give up on an answer which trickles, wherever in it.

The time limit of a socket counts from byte to byte, so a header or a chunk that brings one byte a
second would keep its reader for ever. These count the whole answer.
"""

from __future__ import annotations

import math
import socket
import time
from typing import Any, ClassVar

from urllib3.connection import HTTPConnection
from urllib3.connectionpool import HTTPConnectionPool

from rae_protocol.abort import Abortable, AbortableAdapter

# An answer that comes more slowly than this, after its first read timeout, will not end in time.
SLOWEST_BYTES_PER_S = 16 * 1024


class _Socket(socket.socket):
    """Raises TimeoutError once an answer has taken its patience and the time for what came."""

    _began, _patience_s, _came = 0.0, math.inf, 0

    def answer_begins(self, patience_s: float) -> None:
        """From here on what comes counts."""
        self._began, self._patience_s, self._came = time.monotonic(), patience_s, 0

    def recv_into(self, *args: Any, **options: Any) -> int:
        spent = time.monotonic() - self._began
        if spent > self._patience_s + self._came / SLOWEST_BYTES_PER_S:
            raise TimeoutError(f"only {self._came} bytes came in {spent:.0f} s")
        size = super().recv_into(*args, **options)
        self._came += size
        return size


class _Connection(Abortable, HTTPConnection):
    def connect(self) -> None:
        super().connect()
        plain, limit = self.sock, self.sock.gettimeout()
        self.sock = _Socket(plain.family, plain.type, plain.proto, fileno=plain.detach())
        self.sock.settimeout(limit)

    def getresponse(self) -> Any:
        if isinstance(self.sock, _Socket):
            self.sock.answer_begins(math.inf if self.timeout is None else float(self.timeout))
        return super().getresponse()


class _Pool(HTTPConnectionPool):
    ConnectionCls = _Connection


class PatientAdapter(AbortableAdapter):
    """For `http://`: the read timeout is the patience, beside `SLOWEST_BYTES_PER_S`."""

    pools: ClassVar = {**AbortableAdapter.pools, "http": _Pool}
