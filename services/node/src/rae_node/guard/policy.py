"""The guard's decision: readings in, decision with reasons out. Not even an import does I/O here.

Unknown means present: a source that cannot see makes the node blind, and blind it does not work.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from rae_protocol.models import Availability


@dataclass(frozen=True, slots=True)
class Reading:
    """What one source sees.

    `present`: the owner (or his wish) is there; None: this source cannot tell. `measures` are
    compared with the limits of the same name; a measure of None cannot be read.
    """

    source: str
    present: bool | None = False
    code: str = ""
    availability: Availability = Availability.OWNER
    measures: Mapping[str, float | None] = field(default_factory=dict)
    vram_free_mb: float | None = None  # of all GPUs; to be told, nothing is decided by it


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
            elif limit is not None and value > limit:
                found.append((Availability.OWNER, f"{name}_high"))
    reasons = tuple(dict.fromkeys(code for _, code in found))
    if found:
        kinds = {kind for kind, _ in found}
        for gravest in (Availability.PAUSED, Availability.OWNER, Availability.BLIND):
            if gravest in kinds:
                return Decision(False, False, gravest, reasons)
    if cooldown_left_s > 0:
        return Decision(True, False, Availability.OWNER, ("cooldown",))
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


_WORDS = {
    "starting": "the guard has not looked yet",
    "automation_disabled": "automation.enabled is false in runtime.yaml",
    "user_protection_inactive": "safety.detect_active_user is false in runtime.yaml",
    "paused": "the owner paused this node; `rae-node resume` ends that",
    "disk_low": "the disk of workdir or spool is nearly full; make room",
    "spool_full": "results wait for control; the node takes no more until some are delivered",
    "cooldown": "the cooldown after the last interruption is not over",
    "graphical_session": "a graphical session is active, locked or not",
    "remote_session": "somebody works here from afar",
    "tty_active": "a terminal was used within idle_required_minutes of runtime.yaml",
    "foreign_gpu_process": "a program that is not ours uses the GPU",
    "gpu_rest": "the GPU rests after a long run, for gpu_rest_minutes of config.yaml",
}


_BLIND = ("logind", "tty", "load", "gpu", "pause", "cpu_percent", "gpu_percent", "vram_gb")
REASONS = (
    *_WORDS,
    "isolation_too_weak",
    *(f"{name}_high" for name in ("cpu_percent", "gpu_percent", "vram_gb")),
    *(f"blind_{name}" for name in _BLIND),
)


def in_words(code: str) -> str:
    """A reason as a person reads it."""
    if code.startswith("blind_"):
        return f"the guard cannot see {code[6:]}, and unknown means in use"
    if code.endswith("_high"):
        return f"{code[:-5]} is above its limit in runtime.yaml"
    return _WORDS.get(code, code.replace("_", " "))
