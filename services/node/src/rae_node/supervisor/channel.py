"""What a supervisor says to its agent, with files where it asked. Standard library only."""

from __future__ import annotations

import _socket
import json
import os
import sys
from typing import Any


class AgentLine:
    """What is to be said, in order, over the socket that is standard output."""

    def __init__(self) -> None:
        self.pending: list[tuple[bytes, int | None]] = []
        self._socket = _socket.socket(fileno=os.dup(1))

    def say(self, message: dict[str, Any], file: int | None = None) -> None:
        """Queue a line, with a file for the agent; sent when it reads, never waited for."""
        self.pending.append((json.dumps(message).encode() + b"\n", file))
        self.flush()

    def flush(self) -> None:
        """As much as the line takes now."""
        try:
            while self.pending:
                data, file = self.pending[0]
                sent = self._socket.sendmsg([data], [] if file is None else [self.passed(file)])
                self.pending[0] = data[sent:], None
                if file is not None:
                    os.close(file)
                if sent == len(data):
                    del self.pending[0]
        except BlockingIOError:
            return
        except OSError:
            self.pending.clear()

    @staticmethod
    def passed(file: int) -> tuple[int, int, bytes]:
        """A descriptor as a control message, see unix(7)."""
        return _socket.SOL_SOCKET, _socket.SCM_RIGHTS, file.to_bytes(4, sys.byteorder)
