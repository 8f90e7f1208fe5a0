"""Terminals: when somebody last typed into one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from rae_node.guard.policy import Reading
from rae_protocol.clock import Clock

_GRAIN_S = 8.0  # the kernel stamps a terminal no finer than that


class TtySource:
    """Virtual consoles and pseudo terminals (SSH, terminal windows).

    A terminal's access time is that of its last input, and a new one's that of its making, so the
    first minutes after a login or the boot count, too; output does not. `ours(device)` leaves out
    terminals that our own tasks made.
    """

    name = "tty"

    def __init__(
        self,
        idle_s: Callable[[], float],
        clock: Clock,
        *,
        ours: Callable[[int], bool],
        folder: Path = Path("/dev"),
    ) -> None:
        self._idle_s, self._clock, self._ours, self._folder = idle_s, clock, ours, folder

    def read(self) -> Reading:
        """Look at every terminal. Raises OSError where there are none to look at."""
        found = [one for one in (self._folder / "pts").iterdir() if one.name.isdigit()]
        found += self._folder.glob("tty[0-9]*")
        return Reading(self.name, any(self._used(one) for one in found), "tty_active")

    def _used(self, terminal: Path) -> bool:
        try:
            stat = terminal.stat()
        except FileNotFoundError:  # closed in this moment
            return False
        # A stamp of the future (somebody set the clock back) counts as use.
        recent = self._clock.wall() - stat.st_atime < self._idle_s() + _GRAIN_S
        return recent and not self._ours(stat.st_rdev)
