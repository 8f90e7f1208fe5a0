"""The owner's own word: `rae-node pause`, kept in a file so that a restart does not forget it."""

from __future__ import annotations

import json
import os
from pathlib import Path

from rae_node.clock import Clock
from rae_node.guard.policy import Reading
from rae_protocol.models import Availability


class PauseSource:
    """Paused until a wall-clock time, or until `resume`."""

    name = "pause"

    def __init__(self, file: Path, clock: Clock) -> None:
        self._file, self._clock = file, clock

    def read(self) -> Reading:
        """Whether the pause still holds. Raises OSError, ValueError: then nobody can tell."""
        until = self.until()
        held = until is not None and (until == 0 or self._clock.wall() < until)
        return Reading(self.name, held, "paused", Availability.PAUSED)

    def until(self) -> float | None:
        """None: not paused; 0: until resume; else unix seconds. Raises OSError, ValueError."""
        try:
            text = self._file.read_text(encoding="ascii")
        except FileNotFoundError:
            return None
        return float(json.loads(text)["until"] or 0)

    def set(self, duration_s: float | None) -> float | None:
        """Pause for so many seconds, None for until resume. Returns the end. Raises OSError."""
        until = None if duration_s is None else self._clock.wall() + duration_s
        partial = self._file.with_suffix(".part")
        with partial.open("w", encoding="ascii") as handle:
            json.dump({"until": until}, handle)
            handle.flush()
            os.fsync(handle.fileno())
        partial.replace(self._file)
        return until

    def clear(self) -> None:
        """Resume. Raises OSError."""
        self._file.unlink(missing_ok=True)
