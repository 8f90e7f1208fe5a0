"""What a monitor sees of the node: /healthz's keys and Prometheus' text. Pure; no task in it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import get_args

from rae_node.guard.words import REASONS
from rae_protocol.models import Availability, YieldRequest

OUTCOMES = ("succeeded", "failed", "yielded", "dropped")
YIELDS: tuple[str, ...] = get_args(YieldRequest.model_fields["reason"].annotation)
STOPPED_MS = (50, 100, 250, 500, 1000, 2500, 5000)
OTHER = "other"  # a label is always one of a closed list


@dataclass(frozen=True, slots=True)
class Counts:
    """What the tally has counted since the agent began."""

    outcomes: Mapping[str, int]
    yields: Mapping[str, int]
    stopped_ms: tuple[float, ...]  # for each bucket, how many were at most so slow, then all
    stopped_sum: float


class Tally:
    """Counts how attempts end. Thread-safe."""

    def __init__(self) -> None:
        self._outcomes, self._yields = Counter[str](), Counter[str]()
        self._stopped, self._sum = [0] * (len(STOPPED_MS) + 1), 0.0
        self._lock = threading.Lock()

    def ended(self, ending: str, stopped_ms: float | None) -> None:
        """An attempt is over. `ending`: the result's status, a yield's reason, or `dropped`."""
        with self._lock:
            if ending in OUTCOMES:
                self._outcomes[ending] += 1
            else:
                self._outcomes["yielded"] += 1
                self._yields[ending if ending in YIELDS else OTHER] += 1
            if stopped_ms is not None:
                self._sum += stopped_ms
                self._stopped[-1] += 1
                for number, bound in enumerate(STOPPED_MS):
                    self._stopped[number] += stopped_ms <= bound

    def counts(self) -> Counts:
        """Now."""
        with self._lock:
            stopped = tuple(self._stopped)
            return Counts(dict(self._outcomes), dict(self._yields), stopped, self._sum)


@dataclass(frozen=True, slots=True)
class View:
    """The node at one moment; None is unknown."""

    running: int
    queued: int
    cpu_load: float | None
    vram_free_mb: float | None
    availability: Availability
    reasons: tuple[str, ...]
    spool_entries: int
    spool_bytes: int
    heartbeat_age_s: float | None
    clock_offset_s: float
    counts: Counts


def healthz(view: View) -> dict[str, float | None]:
    """C8's four keys. `vram_free` in MiB."""
    return {
        "running": view.running,
        "queued": view.queued,
        "cpu_load": view.cpu_load,
        "vram_free": view.vram_free_mb,
    }


def prometheus(view: View) -> str:
    """The exposition format, version 0.0.4. What is unknown is left out."""
    lines: list[str] = []

    def add(name: str, kind: str, text: str, samples: Iterable[tuple[str, float | None]]) -> None:
        known = [
            f"rae_node_{name}{key} {value:.15g}" for key, value in samples if value is not None
        ]
        if known:
            lines.extend((f"# HELP rae_node_{name} {text}", f"# TYPE rae_node_{name} {kind}"))
            lines.extend(known)

    def gauge(name: str, text: str, value: float | None) -> None:
        add(name, "gauge", text, [("", value)])

    def flags(name: str, text: str, label: str, on: Iterable[str], known: Iterable[str]) -> None:
        wanted, every = set(on), list(known)
        if wanted - set(every):
            wanted.add(OTHER)
        labels = dict.fromkeys([*every, OTHER])
        add(name, "gauge", text, [(f'{{{label}="{one}"}}', one in wanted) for one in labels])

    vram, counts = view.vram_free_mb, view.counts
    gauge("queue", "Tasks that do not run yet, and messages that control has not.", view.queued)
    gauge("running", "Tasks that run.", view.running)
    free = None if vram is None else vram * 1048576
    gauge("vram_free_bytes", "Free memory of all GPUs.", free)
    gauge("cpu_load", "The kernel's load average over one minute.", view.cpu_load)
    states = [one.value for one in Availability]
    add(
        "guard_state", "gauge", "1 for the guard's word, 0 for the others.",
        [(f'{{state="{one}"}}', one == view.availability.value) for one in states],
    )  # fmt: skip
    flags("guard_reason", "1 for each reason not to work.", "reason", view.reasons, REASONS)
    add(
        "attempts_total", "counter", "Attempts that ended, by outcome.",
        [(f'{{outcome="{one}"}}', counts.outcomes.get(one, 0)) for one in OUTCOMES],
    )  # fmt: skip
    add(
        "yields_total", "counter", "Attempts that were handed back, by reason.",
        [(f'{{reason="{one}"}}', counts.yields.get(one, 0)) for one in (*YIELDS, OTHER)],
    )  # fmt: skip
    gauge("spool_entries", "Messages that control has not.", view.spool_entries)
    gauge("spool_bytes", "What they take on the disk.", view.spool_bytes)
    gauge("heartbeat_age_seconds", "Since control's last answer.", view.heartbeat_age_s)
    gauge("clock_offset_seconds", "How far control's clock is ahead.", view.clock_offset_s)
    bounds = [*map(str, STOPPED_MS), "+Inf"]
    add(
        "stopped_ms", "histogram", "From a stop's decision to the last process gone.",
        [
            *((f'_bucket{{le="{bound}"}}', value)
              for bound, value in zip(bounds, counts.stopped_ms, strict=True)),
            ("_sum", counts.stopped_sum),
            ("_count", counts.stopped_ms[-1]),
        ],
    )  # fmt: skip
    return "\n".join(lines) + "\n"
