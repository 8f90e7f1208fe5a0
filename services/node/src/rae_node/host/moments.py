"""How much of a time is left, where the wall clock alone must not decide. Pure.

The wall clock steps: NTP and people set it, and a board without a battery starts at any date. So
what cannot be undone (lending a paused machine, deleting a file) counts on the boot clock, and
believes the wall clock about earlier boots only where it is plausible.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from rae_protocol.clock import Clock

SETTLED_S = 600.0  # after the boot, by when NTP has set the wall clock
PLAUSIBLE_S = 366 * 86400.0  # that nothing ran here


@dataclass(frozen=True, slots=True)
class Moment:
    """`wall`: unix seconds; `boot`: seconds since the boot called `boot_id`, empty if unknown."""

    wall: float
    boot: float = 0.0
    boot_id: str = ""

    def as_json(self) -> dict[str, float | str]:
        """For a file."""
        return asdict(self)


def now_on(clock: Clock) -> Moment:
    """This moment."""
    return Moment(clock.wall(), clock.boot(), clock.boot_id())


def moment_of(said: Mapping[str, object]) -> Moment:
    """Out of a file. Raises LookupError, TypeError, ValueError."""
    wall, boot = float(str(said["wall"])), float(str(said["boot"]))
    if not (math.isfinite(wall) and math.isfinite(boot)):
        raise ValueError("no moment")
    return Moment(wall, boot, str(said["boot_id"]))


def left_s(since: Moment, seconds: float, now: Moment) -> float:
    """What is left of so many seconds; 0 or less: they are over, whatever steps the wall clock did.

    Of another boot's moment the wall clock tells, once it has had time to be set, and where it
    says neither "before" nor "a year ago". Else the seconds count anew from this boot on.
    """
    if since.boot_id and since.boot_id == now.boot_id:
        return since.boot + seconds - now.boot
    anew, passed = seconds - now.boot, now.wall - since.wall
    if not 0 <= passed <= seconds + PLAUSIBLE_S:
        return anew
    return min(anew, max(seconds - passed, SETTLED_S - now.boot))
