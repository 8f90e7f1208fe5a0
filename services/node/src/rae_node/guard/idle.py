"""How long something was not used, though the clock of its stamps may be set. Pure."""

from __future__ import annotations

from collections.abc import Mapping

GRAIN_S = 8.0  # the kernel changes a terminal's stamp only where more than its lower three bits do


class LastUse:
    """Seconds of quiet on CLOCK_MONOTONIC, which no setting of the clock changes, nor a suspend.

    A stamp says that something was used, by its change; when, the look says that sees it. Only the
    first look has to believe a stamp, so it takes no more than the machine's own time since boot.
    """

    def __init__(self) -> None:
        self._known: dict[str, tuple[float, float]] = {}  # by name: stamp, last use
        self._looked: tuple[float, float] | None = None

    def look(self, stamps: Mapping[str, float], wall: float, monotonic: float) -> dict[str, float]:
        """Seconds since the last use of each. `stamps`: by name, on the wall clock."""
        used = {}
        for name, stamp in stamps.items():
            before = self._known.get(name)
            if self._looked is None:
                # A stamp of the future says nothing but that the clock was set.
                used[name] = monotonic - max(0.0, min(wall - stamp - GRAIN_S, monotonic))
            elif before is None or before[0] != stamp or self._hidden(stamp, wall, monotonic):
                used[name] = monotonic
            else:
                used[name] = before[1]
        self._known = {name: (stamp, used[name]) for name, stamp in stamps.items()}
        self._looked = wall, monotonic
        return {name: monotonic - at for name, at in used.items()}

    def _hidden(self, stamp: float, wall: float, monotonic: float) -> bool:
        """Whether a use since the last look may have left the stamp as it was.

        So it is while the clock shows the stamp's own eight seconds: it may have done so after the
        last look, or before this one where it was set in between.
        """
        then, at = self._looked or (wall, monotonic)
        passed = monotonic - at
        return -GRAIN_S - passed < then - stamp < GRAIN_S or (
            -GRAIN_S < wall - stamp < GRAIN_S + passed
        )
