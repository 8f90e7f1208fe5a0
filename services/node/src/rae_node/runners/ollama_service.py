"""The model runner: who it is, which models it has, and its end; only root may kill it."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Collection
from pathlib import Path

from rae_node.runners.llm import port_problem, present_models
from rae_node.telemetry.log import EventLog
from rae_protocol.clock import Clock

DOOR = Path("/run/rae-task/kill-ollama.sock")
# All of it: the guard waits, and the owner's machine is to be free within a second.
WAIT_S = 1.0
_MODELS_S = 2.0


class ModelRunner:
    """rae-ollama.service by its kill socket. A node without one has no runner of ours.

    `url`: where it answers; `uids`: whose program it is.
    """

    def __init__(
        self, log: EventLog, clock: Clock, url: str, uids: Collection[int], door: Path = DOOR
    ) -> None:
        self._log, self._clock, self._door = log, clock, door
        self._url, self._uids = url, uids
        self._lock = threading.Lock()
        self._loaded = True  # an earlier agent may have left one
        self._told = False

    def models(self) -> list[str] | None:
        """Those that it has; None when it does not answer, or another user has taken its port."""
        found = present_models(self._url, _MODELS_S, self._uids)
        if found is None and (problem := port_problem(self._url, self._uids)):
            self._log.warning("model_port_taken", error=problem)
        return found

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
        end = time.monotonic() + WAIT_S
        try:
            with socket.socket(socket.AF_UNIX) as line:
                line.settimeout(WAIT_S)
                line.connect(str(self._door))
                line.settimeout(max(0.001, end - time.monotonic()))
                line.sendall(b"kill\n")
                line.settimeout(max(0.001, end - time.monotonic()))
                return line.recv(1024).decode(errors="replace").strip()
        except TimeoutError:
            return f"{self._door} did not answer within {WAIT_S:g} s"
        except OSError as error:
            return f"{self._door}: {error.strerror or error}"
