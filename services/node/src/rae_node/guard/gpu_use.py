"""What NVML says of a GPU, and which of its use is not ours. Pure; gpu_rules.py decides by it.

No answer of NVML means "no use" by itself:

- A look without a share of any process, while the whole GPU works, says nothing of single
  processes: some drivers give shares with every fifth look only (Syllo/nvtop#448). What others did
  at their last look within the window counts on. After `LATE_S` of such looks beside our work the
  driver counts as one that gives no shares.
- A figure beyond 100 % is made up (Syllo/nvtop#110). Where it is another process's, its use of
  that engine is unknown, and the whole GPU's figure counts.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

WINDOW_S = 5.0  # at one look a second, half a second of a busy GPU does not count yet
# Together, for all clients that may rest. An idle desktop's clock and cursor stay below the first;
# a film takes 3 % and more of the decoder, and nothing else that rests takes any.
REST_PERCENT = 10.0
REST_CODEC_PERCENT = 2.0
# NVML takes a sample each second at the slowest, and the slowest driver gives each fifth: a process
# of ours that works has a share by then.
LATE_S = 4.0


@dataclass(frozen=True, slots=True)
class Engine:
    """A part of a GPU: its name, its highest use at rest in percent, NVML's call for all of it."""

    label: str
    rest: float
    call: str


ENGINES: Mapping[str, Engine] = {
    "sm": Engine("processors", REST_PERCENT, "nvmlDeviceGetUtilizationRates"),
    "encoder": Engine("video encoder", REST_CODEC_PERCENT, "nvmlDeviceGetEncoderUtilization"),
    "decoder": Engine("video decoder", REST_CODEC_PERCENT, "nvmlDeviceGetDecoderUtilization"),
}
Load = Mapping[str, float]  # percent by engine; what is missing is not known


@dataclass(frozen=True, slots=True)
class Client:
    """A process that has the GPU open. `graphics`: draws, whatever else it does.

    `vram_mb`: MiB; None where NVML does not tell.
    """

    pid: int
    vram_mb: float | None
    graphics: bool


@dataclass(frozen=True, slots=True)
class Facts:
    """What nvml_child.py says of one GPU.

    `now`, `recent`: the whole GPU's use at this moment, and since the look before; `shares`: single
    processes' since then, None where NVML does not tell, and none for a process that has no new
    sample; `streams`: a process and what it does;
    `unknown`: NVML's reason by the call that cannot be made here.
    """

    now: Load = field(default_factory=dict)
    recent: Load = field(default_factory=dict)
    shares: Mapping[int, Load] | None = None
    clients: tuple[Client, ...] = ()
    streams: tuple[tuple[int, str], ...] = ()
    used_mb: float | None = None
    free_mb: float | None = None
    unknown: Mapping[str, str] = field(default_factory=dict)


def facts_of(answer: Mapping[str, Any]) -> Facts:
    """Parse it. Raises LookupError, TypeError, ValueError."""
    return Facts(
        now=answer["now"],
        recent=answer["recent"],
        shares=None if answer["shares"] is None else _shares(answer["shares"]),
        clients=tuple(Client(*one) for one in answer["clients"]),
        streams=tuple((pid, what) for pid, what in answer["streams"]),
        used_mb=answer["used_mb"],
        free_mb=answer["free_mb"],
        unknown=answer["unknown"],
    )


def _shares(rows: Sequence[Sequence[Any]]) -> dict[int, Load]:
    """By pid, without the figures that are made up; the higher where a process has two rows."""
    found: dict[int, Load] = {}
    for pid, *used in rows:
        share = dict(zip(ENGINES, used, strict=True))
        before = found.get(pid, share)
        found[pid] = {
            name: max(percent, before[name])
            for name, percent in share.items()
            if percent <= 100 and name in before
        }
    return found


@dataclass(frozen=True, slots=True)
class Look:
    """One look at a GPU's use that is not ours, at a time in seconds.

    `ours`: something of ours was on it. `by`: single processes' shares. `peak`: percent of the
    processors at this moment, None where it is not known. `fresh`: whose shares came with this
    look. `mute`: since when no process's share has come although the GPU works and something of
    ours is on it; None where one has.
    """

    at: float
    ours: bool
    load: Load
    by: Mapping[int, Load]
    peak: float | None
    fresh: frozenset[int] = frozenset()
    mute: float | None = None


def take(
    facts: Facts,
    at: float,
    ours: Collection[int],
    before: Sequence[Look],
    lives: Callable[[int], bool],
    window_s: float = WINDOW_S,
) -> Look:
    """Tell others' use from ours. `before`: the looks so far, the last one whatever its age.

    Work of looks within the window may still show.
    """
    window = [one for one in before if at - one.at < window_s]
    shares = facts.shares or {}
    by = {pid: used for pid, used in shares.items() if pid not in ours and lives(pid)}
    mine = any(pid in ours for pid in (*(one.pid for one in facts.clients), *shares))
    beside_us = mine or any(one.ours for one in window)
    mute = None
    shares_known = facts.shares is not None
    if facts.shares == {} and _works(facts):
        by = _latest(facts, ours, window, lives)
        if mine:
            mute = before[-1].mute if before and before[-1].mute is not None else at
            shares_known = at - mute < LATE_S
    if beside_us and not shares_known and all(one.pid in ours for one in facts.clients):
        return Look(at, mine, dict.fromkeys(ENGINES, 0.0), {}, 0.0, mute=mute)
    load: dict[str, float] = {}
    peaks: list[float] = []
    for name, engine in ENGINES.items():
        least = sum(used.get(name, 0.0) for used in by.values())
        exact = shares_known and all(name in used for used in by.values())
        theirs = [least] if exact or least > engine.rest else []
        whole = not exact or not beside_us
        known = [*theirs, *([facts.recent[name]] if whole and name in facts.recent else [])]
        if known:
            load[name] = min(100.0, max(known))
        if name == "sm":
            peaks = [*theirs, *([facts.now[name]] if whole and name in facts.now else [])]
    peak = min(100.0, max(peaks)) if peaks else None
    return Look(at, mine, load, by, peak, frozenset(shares), mute)


def _works(facts: Facts) -> bool:
    """Whether the whole GPU does more than rest, or that is not known."""
    return "sm" not in facts.recent or any(
        facts.recent.get(name, 0.0) > engine.rest for name, engine in ENGINES.items()
    )


def _latest(
    facts: Facts, ours: Collection[int], window: Sequence[Look], lives: Callable[[int], bool]
) -> dict[int, Load]:
    """The last share within the window of each process that still has the GPU open."""
    there = {one.pid for one in facts.clients if one.pid not in ours and lives(one.pid)}
    return {pid: one.by[pid] for one in window for pid in there & one.fresh if pid in one.by}
