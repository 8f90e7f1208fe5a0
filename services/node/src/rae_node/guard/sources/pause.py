"""The owner's own word: `rae-node pause`, kept in a file so that a restart does not forget it.

Another file, which owners write by hand, pauses, too, should the agent not answer them.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import threading
from pathlib import Path

from rae_node.config.layout import write_file
from rae_node.guard.policy import Holder, Reading
from rae_node.host.moments import left_s, moment_of, now_on
from rae_protocol.clock import Clock
from rae_protocol.models import Availability

_MOST = 4096  # bytes


class PauseSource:
    """Paused for a time, or until `resume`. No step of the wall clock ends it: see `moments`."""

    name = "pause"

    def __init__(self, file: Path, clock: Clock, by_hand: Path | None = None) -> None:
        """`by_hand`: a file that pauses as well, as long as it is there, whatever it holds."""
        self._file, self._clock = file, clock
        self._lock = threading.Lock()
        self._files = (file,) if by_hand is None else (file, by_hand)

    def read(self) -> Reading:
        """Whether the pause still holds."""
        left = self.left_s()
        shown = left if math.isfinite(left) else None
        found = (Holder("paused", "the owner paused this node", "`rae-node resume`", shown),)
        held = left > 0
        return Reading(self.name, held, "paused", Availability.PAUSED, holders=found * held)

    def left_s(self) -> float:
        """Seconds, 0 without a pause; infinity: until resume, or a file that cannot be read."""
        return max(map(self._left_by, self._files))

    def _left_by(self, file: Path) -> float:
        try:
            said = json.loads(_start_of(file))
            if not said["until"]:
                return math.inf
            now = now_on(self._clock)
            if "since" not in said:  # an older release's
                return max(0.0, float(said["until"]) - now.wall)
            left = left_s(moment_of(said["since"]), float(said["duration_s"]), now)
        except FileNotFoundError:
            return 0.0
        except (OSError, ValueError, LookupError, TypeError):
            return math.inf
        return math.inf if math.isnan(left) else max(0.0, left)

    def until(self) -> float | None:
        """None: not paused; 0: until resume; or the end as the wall clock stands, unix seconds."""
        left = self.left_s()
        if not left:
            return None
        return self._clock.wall() + left if math.isfinite(left) else 0.0

    def is_set(self) -> bool:
        """Whether there is a pause to end, if only one that is over."""
        return any(map(os.path.lexists, self._files))

    def set(self, duration_s: float | None, *, only_longer: bool = False) -> float | None:
        """Pause for so many seconds, None for until resume. Returns the end. Raises OSError.

        `only_longer`: whoever asks may end no pause, so nothing of what is set gets shorter.
        """
        with self._lock:
            if only_longer and (math.inf if duration_s is None else duration_s) <= self.left_s():
                return self.until() or None
            now = now_on(self._clock)
            until = None if duration_s is None else now.wall + duration_s
            pause = {"until": until, "duration_s": duration_s, "since": now.as_json()}
            write_file(self._file, json.dumps(pause), 0o644)
            for other in () if only_longer else self._files[1:]:
                with contextlib.suppress(OSError):  # then the longer of both counts
                    other.unlink()
        return until

    def clear(self) -> None:
        """Resume. Raises OSError."""
        with self._lock:
            for file in self._files:
                file.unlink(missing_ok=True)


def _start_of(file: Path) -> bytes:
    """More than a pause needs. Waits for nothing, whatever lies there. Raises OSError."""
    handle = os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    try:
        return os.read(handle, _MOST)
    finally:
        os.close(handle)
