"""The guard's decision: readings in, decision with reasons out. Not even an import does I/O here.

Unknown means present: a source that cannot see makes the node blind, and blind it does not work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rae_protocol.models import Availability


@dataclass(frozen=True, slots=True)
class Holder:
    """One cause for which the machine counts as in use; it never leaves this machine.

    `who`: program, session, device or connection. `ends`: what would end it, where the code alone
    does not say. `left_s`: seconds after which it ends by itself if nothing else happens. `age_s`:
    seconds since somebody was last there, who counts for a while longer.
    """

    code: str
    who: str
    ends: str = ""
    left_s: float | None = None
    age_s: float = 0.0

    def __str__(self) -> str:
        return f"{self.who}; {self.ends}" if self.ends else self.who


@dataclass(frozen=True, slots=True)
class Reading:
    """What one source sees.

    `present`: the owner (or his wish) is there; None: this source cannot tell. `measures` are
    compared with the limits of the same name; a measure of None cannot be read. `peaks` are what a
    measure is at this moment: above the limit, no work begins, and what runs goes on.
    """

    source: str
    present: bool | None = False
    code: str = ""
    availability: Availability = Availability.OWNER
    measures: Mapping[str, float | None] = field(default_factory=dict)
    vram_free_mb: float | None = None  # of all GPUs; reported only, nothing is decided by it
    holders: tuple[Holder, ...] = ()
    peaks: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Rules:
    """The owner's rules out of runtime.yaml. `limits`: measure → highest safe value."""

    enabled: bool
    detect_active_user: bool
    limits: Mapping[str, float]


@dataclass(frozen=True, slots=True)
class Decision:
    """`safe`: work may run. `may_poll`: new work may be asked for (not in the cooldown)."""

    safe: bool
    may_poll: bool
    availability: Availability
    reasons: tuple[str, ...]


UNSEEN = Decision(False, False, Availability.BLIND, ("starting",))


def decide(rules: Rules, readings: Sequence[Reading], cooldown_left_s: float) -> Decision:
    """Whether the machine may be used now: all reasons, and the gravest availability."""
    found: list[tuple[Availability, str]] = []
    if not rules.enabled:
        found.append((Availability.PAUSED, "automation_disabled"))
    if not rules.detect_active_user:
        found.append((Availability.BLIND, "user_protection_inactive"))
    for reading in readings:
        if reading.present is None:
            found.append((Availability.BLIND, f"blind_{reading.source}"))
        elif reading.present:
            found.append((reading.availability, reading.code or reading.source))
        for name, value in reading.measures.items():
            limit = rules.limits.get(name)
            if value is None:
                found.append((Availability.BLIND, f"blind_{name}"))
            elif limit is not None and not value <= limit:  # NaN is not safe either
                found.append((Availability.OWNER, f"{name}_high"))
    reasons = tuple(dict.fromkeys(code for _, code in found))
    if found:
        kinds = {kind for kind, _ in found}
        for gravest in (Availability.PAUSED, Availability.OWNER, Availability.BLIND):
            if gravest in kinds:
                return Decision(False, False, gravest, reasons)
    waits = ["cooldown"] if cooldown_left_s > 0 else []
    peaks = ((name, value) for one in readings for name, value in one.peaks.items())
    waits += [
        f"{name}_high"
        for name, value in peaks
        if name in rules.limits and not value <= rules.limits[name]
    ]
    if waits:
        return Decision(True, False, Availability.OWNER, tuple(dict.fromkeys(waits)))
    return Decision(True, True, Availability.OPEN, ())


@dataclass(frozen=True, slots=True)
class GpuRun:
    """A stretch of GPU work without a rest in it: when it began, when work was last seen."""

    began: float
    seen: float


def follow_gpu(run: GpuRun | None, now: float, working: bool, rest_s: float) -> GpuRun | None:
    """The stretch as it is now; None when there is none, or its rest is over."""
    if run is not None and now - run.seen >= rest_s:
        run = None
    return GpuRun(run.began if run else now, now) if working else run


def gpu_must_rest(run: GpuRun | None, longest_s: float) -> bool:
    """B10: after its longest run the GPU gets no new task until a rest.

    What runs then goes on to its own time limit: the GPU works at most for the longest run and one
    task more.
    """
    return run is not None and run.seen - run.began >= longest_s


def yield_reason(decision: Decision) -> str:
    """The word a task is handed back with because of a decision."""
    if decision.availability in {Availability.PAUSED, Availability.OWNER}:
        return str(decision.availability.value)
    return "guard"
