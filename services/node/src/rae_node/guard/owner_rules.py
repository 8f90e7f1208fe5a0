"""The owner's own rules: when the machine may be lent at all, and what tightens the limits. Pure.

Apart from the two keys about graphics programs, no content of owner.yaml makes a machine free that
runtime.yaml would keep: the file adds causes, and lowers limits.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta, tzinfo
from typing import Literal

from rae_node.guard.gpu_rules import Resting
from rae_node.guard.policy import Holder

Mode = Literal["auto", "always", "never"]
DAY_MINUTES = 24 * 60
DAYS = ("mon", "tue", "wed", "thu", "fri", "sat", "sun")
_COMM_LENGTH = 15  # the kernel cuts a process's name there, proc_pid_comm(5)
_SEARCHED = timedelta(days=8)  # every week has the same hours


@dataclass(frozen=True, slots=True)
class Window:
    """Hours of one weekday (0 is Monday), in minutes of its clock; above 1440 is the next day."""

    day: int
    start: int
    end: int


@dataclass(frozen=True, slots=True)
class OwnerRules:
    """What owner.yaml says; without the file, this.

    `until`: unix seconds at which `lend` falls back to auto. `zone`: None is the machine's own.
    `windows`: None is every hour. `limits`: highest safe value by measure. `resting`: who may keep
    the GPU open at rest.
    """

    lend: Mode = "auto"
    until: float | None = None
    zone: tzinfo | None = None
    windows: tuple[Window, ...] | None = None
    present_while: frozenset[str] = frozenset()
    limits: Mapping[str, float] = field(default_factory=dict)
    input_idle_s: float = 0.0
    terminal_idle_s: float = 0.0
    resting: Resting = field(default_factory=Resting)


STRICT = OwnerRules()


def mode_at(rules: OwnerRules, now: float) -> Mode:
    """What `lend` says at a time: after its end it is auto."""
    return rules.lend if rules.until is None or now < rules.until else "auto"


def in_hours(windows: Collection[Window], local: datetime) -> bool:
    """Whether the clock on the wall shows a time within the windows.

    A clock that goes back shows an hour twice, and both count; one that is put forward leaves
    times out.
    """
    minute = local.hour * 60 + local.minute
    today, yesterday = local.weekday(), (local.weekday() - 1) % 7
    return any(
        (one.day == today and one.start <= minute < one.end)
        or (one.day == yesterday and minute < one.end - DAY_MINUTES)
        for one in windows
    )


def opens_at(rules: OwnerRules, now: float) -> float | None:
    """The next full minute (unix seconds) within the hours; None where there is none."""
    windows, zone = rules.windows or (), rules.zone
    moment = now - now % 60 + 60
    end = now + _SEARCHED.total_seconds()
    while windows and moment <= end:
        if in_hours(windows, datetime.fromtimestamp(moment, zone)):
            return moment
        moment += 60
    return None


def causes(
    rules: OwnerRules,
    now: float,
    running: Mapping[int, str],
    file: str,
    opens: Callable[[OwnerRules, float], float | None],
) -> Iterator[Holder]:
    """Why the owner's rules forbid work now.

    `now`: unix seconds; `running`: names by pid; `opens`: `opens_at` for these rules.
    """
    mode = mode_at(rules, now)
    if mode == "never":
        left_s = None if rules.until is None else rules.until - now
        yield Holder("owner_never", f"{file}: lend is never", "change `lend` there", left_s)
    windows = rules.windows
    if windows is not None and mode != "always":
        local = datetime.fromtimestamp(now, rules.zone)
        zone = f" in {rules.zone}" if rules.zone is not None else ""
        if not in_hours(windows, local):
            at = opens(rules, now)
            yield Holder(
                "owner_hours",
                f"{file}: {local:%A %H:%M}{zone} is outside its hours",
                "change `hours` there, or say `lend: always until` a date",
                None if at is None else at - now,
            )
    wanted = {_as_comm(name) for name in rules.present_while}
    for name in sorted(wanted & set(running.values())):
        pids = [str(pid) for pid, other in sorted(running.items()) if other == name]
        which = f"process {pids[0]}" if len(pids) == 1 else f"{len(pids)} processes"
        yield Holder(
            "owner_program",
            f"{name} ({which}): `present_while` in {file} names it",
            "close it, or take it out of `present_while`",
        )


def _as_comm(name: str) -> str:
    """As the kernel cuts it: by bytes."""
    return name.encode()[:_COMM_LENGTH].decode(errors="replace")


def tightened(limits: Mapping[str, float], rules: OwnerRules) -> dict[str, float]:
    """The lower of both limits for each measure."""
    return {name: min(limit, rules.limits.get(name, limit)) for name, limit in limits.items()}


def days_of(text: str) -> Sequence[int]:
    """`mon`, `mon-fri`, `sat,sun`, `daily` as weekdays. Raises ValueError."""
    found: list[int] = []
    for part in text.replace(" ", "").lower().split(","):
        first, dash, last = part.partition("-")
        if part == "daily":
            found += range(7)
        elif first in DAYS and (last in DAYS if dash else not last):
            start, end = DAYS.index(first), DAYS.index(last or first)
            found += [day % 7 for day in range(start, end + 1 + (7 if end < start else 0))]
        else:
            raise ValueError(f"{part!r} is no weekday; write mon, mon-fri, sat,sun or daily")
    return found


def minutes_of(text: str) -> tuple[int, int]:
    """`18:00-08:00` as minutes from the day's begin; past midnight the end is above 1440.

    Raises ValueError.
    """
    first, dash, last = text.replace(" ", "").partition("-")
    start, end = _minute(first), _minute(last)
    if not dash or start is None or end is None or start in {end, DAY_MINUTES}:
        raise ValueError(f"{text!r} are no hours; write 18:00-08:00, or 00:00-24:00 for a day")
    return start, end if end > start else end + DAY_MINUTES


def _minute(text: str) -> int | None:
    hour, colon, minute = text.partition(":")
    if not (colon and hour.isascii() and minute.isascii() and hour.isdigit() and minute.isdigit()):
        return None
    if len(hour) > 2 or len(minute) != 2 or int(minute) > 59:
        return None
    total = int(hour) * 60 + int(minute)
    return total if total <= DAY_MINUTES else None
