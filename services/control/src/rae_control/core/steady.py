"""The time of day as far as two clocks agree; nothing that cannot be undone goes by one alone.

The wall clock may be set, by hours or years, for seconds or for good. The boot clock never steps,
but it begins anew with the machine. After a step of the wall clock the time of day is in doubt
until that clock has gone on without another step for a while, or has come back; after a start of
the machine for ten minutes, by as much as it was off.
"""

from __future__ import annotations

from dataclasses import dataclass

# More than this between two looks is a step; less is a clock that is being slewed.
STEP_S = 1.0
# By when the wall clock of a machine that was started is set.
AFTER_A_START_S = 600.0


@dataclass(frozen=True, slots=True)
class Kept:
    """What outlives a restart of control: believed and earliest time, the boot clock, its boot."""

    believed: float
    earliest: float
    boot: float
    boot_id: str = ""


class SteadyClock:
    """Times in unix seconds (wall) and seconds since the machine started (boot).

    `look` is for one thread, again and again; `earliest` and `latest` are for any.
    """

    def __init__(
        self, wall: float, boot: float, kept: Kept | None, settles_s: float, boot_id: str = ""
    ) -> None:
        now = wall - boot
        self._settles_s = self._settles_always_s = settles_s
        self._boot_id = boot_id
        self._seen, self._since = now, boot
        if kept is None:
            self._believed = self._earliest = now
        elif kept.boot_id == boot_id and kept.boot <= boot:
            self._believed, self._earliest = kept.believed - kept.boot, kept.earliest - kept.boot
        else:
            # How long the machine was off, only the wall clock knows. It needs time to be set.
            self._believed, self._earliest = kept.believed - boot, kept.earliest - boot
            self._settles_s = min(settles_s, AFTER_A_START_S)

    def earliest(self, wall: float, boot: float) -> float:
        """It is at least so late: for what must not be done too early."""
        return min(wall, boot + self._believed)

    def latest(self, wall: float, boot: float) -> float:
        """It is at most so late: for stamps from which an age is counted."""
        return max(wall, boot + self._believed)

    def believed(self, boot: float) -> float:
        """The time of day as it is believed, whatever the wall clock says."""
        return boot + self._believed

    @property
    def doubt_s(self) -> float:
        """By how much the wall clock is ahead of the time that is believed; below 0: behind."""
        ahead = self._seen - self._believed
        return ahead if abs(ahead) > STEP_S else 0.0

    @property
    def settles_s(self) -> float:
        """After how long without another step the wall clock is believed."""
        return self._settles_s

    def look(self, wall: float, boot: float) -> float:
        """Follow the clocks; returns by how much `earliest` has stepped since the last look."""
        now = wall - boot
        if abs(now - self._seen) > STEP_S:
            self._since = boot
        self._seen = now
        if abs(now - self._believed) <= STEP_S or boot - self._since >= self._settles_s:
            self._believed = now
            self._settles_s = self._settles_always_s
        earliest = min(now, self._believed)
        step, self._earliest = earliest - self._earliest, earliest
        return step if abs(step) > STEP_S else 0.0

    def keep(self, boot: float) -> Kept:
        """What to begin from after a restart."""
        return Kept(boot + self._believed, boot + self._earliest, boot, self._boot_id)
