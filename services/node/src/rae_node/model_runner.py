"""The end of the model runner: it alone holds a model's video memory, and only root may kill it."""

from __future__ import annotations

import socket
import threading
from pathlib import Path

from rae_node.log import EventLog
from rae_protocol.clock import Clock

DOOR = Path("/run/rae-task/kill-ollama.sock")
_WAIT_S = 5.0


class ModelRunner:
    """rae-ollama.service by its kill socket. A node without one has no runner of ours."""

    def __init__(self, log: EventLog, clock: Clock, door: Path = DOOR) -> None:
        self._log, self._clock, self._door = log, clock, door
        self._lock = threading.Lock()
        self._loaded = True  # an earlier agent may have left one
        self._told = False

    def begins(self) -> None:
        """A task is about to have a model loaded."""
        self._loaded = True

    def free(self) -> None:
        """Give the video memory back; returns when the runner's processes are gone."""
        with self._lock:
            if not self._loaded or not self._door.exists():
                return
            self._loaded, began = False, self._clock.boot()
            said = self._ask()
            ms = round((self._clock.boot() - began) * 1000, 1)
            if said == "ok":
                self._log.info("model_runner_killed", ms=ms)
            else:
                self._loaded = True  # the guard's next round tries again
                if not self._told:
                    self._log.warning("model_runner_not_killed", error=said, ms=ms)
            self._told = said != "ok"

    def _ask(self) -> str:
        try:
            with socket.socket(socket.AF_UNIX) as line:
                line.settimeout(_WAIT_S)
                line.connect(str(self._door))
                line.sendall(b"kill\n")
                return line.recv(1024).decode(errors="replace").strip()
        except OSError as error:
            return f"{self._door}: {error.strerror or error}"
