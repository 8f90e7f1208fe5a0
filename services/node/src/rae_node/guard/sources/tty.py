"""Terminals: when somebody last typed into one."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rae_node.guard.idle import LastUse
from rae_node.guard.policy import Holder, Reading
from rae_node.host.processes import controls_some
from rae_protocol.clock import Clock

CODE = "tty_active"
# Serial ports (also of ARM boards and on USB), consoles of hypervisors.
_LINE = re.compile(r"(tty(S|AMA|USB|ACM)|hvc|xvc)\d+")
_SCREEN = re.compile(r"tty\d+")
_KERNELS = Path("/sys/class/tty/console/active")


def _console(name: str) -> bool:
    return bool(_SCREEN.fullmatch(name) or _LINE.fullmatch(name))


class TtySource:
    """Virtual and serial consoles, and pseudo terminals (SSH, terminal windows).

    A terminal's access time is that of its last input, and a new one's that of its making, so the
    first minutes after a login or the boot count, too; output does not. A serial line counts only
    where somebody may log in: a program may read a sensor at it for years. `ours(device)` leaves
    out terminals that our own tasks made, `held(device)` says whether one is the controlling
    terminal of a process, as that of a login or of the getty before it; `consoles` names the
    kernel's own. `monotonic` stands still in a suspend.
    """

    name = "tty"

    def __init__(
        self,
        idle_s: Callable[[], float],
        clock: Clock,
        *,
        ours: Callable[[int], bool],
        held: Callable[[int], bool] = controls_some,
        consoles: Path = _KERNELS,
        folder: Path = Path("/dev"),
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._idle_s, self._clock, self._monotonic = idle_s, clock, monotonic
        self._ours, self._held = ours, held
        self._consoles, self._folder = consoles, folder
        self._asked: dict[str, tuple[float, bool]] = {}  # by line: its stamp, whether it counts
        self._use = LastUse()

    def read(self) -> Reading:
        """Look at every terminal. Raises OSError where there are none to look at."""
        stats: dict[str, os.stat_result] = {}
        for path in self._terminals():
            try:
                stats[path] = os.stat(path)  # noqa: PTH116 - a hundred of them, each second
            except FileNotFoundError:  # closed in this moment
                continue
        stamps = {path: stat.st_atime for path, stat in stats.items()}
        idle = self._use.look(stamps, self._clock.wall(), self._monotonic())
        limit = self._idle_s()
        holders = tuple(
            Holder(
                CODE,
                f"terminal {path}: used {seconds:.0f} s ago",
                f"{limit / 60:g} minutes without input there",
                left_s=limit - seconds,
                age_s=max(0.0, seconds),
            )
            for path, seconds in idle.items()
            if seconds < limit
            and self._counts(path, stats[path])
            and not self._ours(stats[path].st_rdev)
        )
        return Reading(self.name, bool(holders), CODE, holders=holders)

    def _counts(self, path: str, stat: os.stat_result) -> bool:
        """Whether input there is a person's. Looks anew with each stamp: it is every process."""
        name = path.rpartition("/")[2]
        if not _LINE.fullmatch(name):
            return True
        stamp, counts = self._asked.get(path, (None, False))
        if stamp != stat.st_atime:
            counts = self._held(stat.st_rdev) or name in self._kernels()
            self._asked[path] = stat.st_atime, counts
        return counts

    def _kernels(self) -> list[str]:
        """The kernel's consoles; none where it has none, or no /sys."""
        try:
            return self._consoles.read_text(encoding="utf-8").split()
        except OSError:
            return []

    def _terminals(self) -> Iterator[str]:
        with os.scandir(self._folder / "pts") as found:
            yield from (one.path for one in found if one.name.isdigit())
        with os.scandir(self._folder) as found:
            yield from (one.path for one in found if _console(one.name))
