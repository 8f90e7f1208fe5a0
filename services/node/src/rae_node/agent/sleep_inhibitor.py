"""No suspend while a task runs (B5): a block of logind's, held by a program that dies with us."""

from __future__ import annotations

import os
import subprocess
import threading
from collections.abc import Sequence
from typing import IO

from rae_node.context import SLEEP_BLOCK
from rae_node.host.processes import english
from rae_node.telemetry.log import EventLog


class Awake:
    """Holds the block while anything runs; without the right to it, says so once."""

    def __init__(self, log: EventLog, command: Sequence[str] = SLEEP_BLOCK) -> None:
        self._log, self._command = log, command
        self._lock = threading.Lock()
        self._held: IO[bytes] | None = None
        self._told = False

    def follow(self, running: int) -> None:
        """So many tasks run now. Returns at once; a machine that may sleep is no reason to fail."""
        with self._lock:
            if running and self._held is None:
                try:
                    self._begin()
                except (OSError, RuntimeError) as error:  # no more files, no more threads
                    self._tell(str(error))
            elif not running and self._held is not None:
                self._held.close()
                self._held = None

    def _begin(self) -> None:
        theirs, ours = os.pipe()
        self._held = os.fdopen(ours, "wb")
        line = os.fdopen(theirs, "rb")
        threading.Thread(target=self._hold, args=(line, self._held), daemon=True).start()

    def _hold(self, line: IO[bytes], held: IO[bytes]) -> None:
        with line:
            try:
                done = subprocess.run(
                    self._command, stdin=line, stdout=subprocess.DEVNULL,
                    stderr=subprocess.PIPE, check=False, env=english(),
                )  # fmt: skip
                said = done.stderr.decode(errors="replace").strip()
            except OSError as error:
                said = f"{self._command[0]}: {error.strerror}"
        with self._lock:
            if self._held is held:
                self._tell(said)

    def _tell(self, said: str) -> None:
        if not self._told:
            self._told = True
            self._log.warning("sleep_not_blocked", error=said[-500:])
