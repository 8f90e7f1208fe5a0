"""The owner's own word: `rae-node pause`, kept in a file so that a restart does not forget it."""

from __future__ import annotations

import json
from pathlib import Path

from rae_node.guard.policy import Reading
from rae_node.paths import write_file
from rae_protocol.clock import Clock
from rae_protocol.models import Availability


class PauseSource:
    """Paused until a wall-clock time, or until `resume`."""

    name = "pause"

    def __init__(self, file: Path, clock: Clock) -> None:
        self._file, self._clock = file, clock

    def read(self) -> Reading:
        """Whether the pause still holds."""
        until = self.until()
        held = until is not None and (until == 0 or self._clock.wall() < until)
        return Reading(self.name, held, "paused", Availability.PAUSED)

    def until(self) -> float | None:
        """None: not paused; 0: until resume, as is a file that nobody can read; or unix seconds."""
        try:
            return float(json.loads(self._file.read_text(encoding="ascii"))["until"] or 0)
        except FileNotFoundError:
            return None
        except (OSError, ValueError, LookupError, TypeError):
            return 0.0

    def set(self, duration_s: float | None) -> float | None:
        """Pause for so many seconds, None for until resume. Returns the end. Raises OSError."""
        until = None if duration_s is None else self._clock.wall() + duration_s
        write_file(self._file, json.dumps({"until": until}))
        return until

    def clear(self) -> None:
        """Resume. Raises OSError."""
        self._file.unlink(missing_ok=True)
