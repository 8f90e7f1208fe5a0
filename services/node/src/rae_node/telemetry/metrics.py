"""What a monitor sees of the node: /healthz's keys and Prometheus' text; no task in it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import get_args

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rae_node.guard.words import REASONS
from rae_protocol.models import Availability, YieldRequest

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
OUTCOMES = ("succeeded", "failed", "yielded", "dropped")
YIELDS: tuple[str, ...] = get_args(YieldRequest.model_fields["reason"].annotation)
STOPPED_MS = (50, 100, 250, 500, 1000, 2500, 5000)
OTHER = "other"  # a label is always one of a closed list


class Tally(Collector):
    """Counts how attempts end. Thread-safe."""

    def __init__(self) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self._outcomes = Counter(
            "rae_node_attempts", "Attempts that ended, by outcome.", ["outcome"], registry=None
        )
        self._yields = Counter(
            "rae_node_yields", "Attempts that were handed back, by reason.", ["reason"],
            registry=None,
        )  # fmt: skip
        self._stopped = Histogram(
            "rae_node_stopped_ms", "From a stop's decision to the last process gone.",
            buckets=STOPPED_MS, registry=None,
        )  # fmt: skip
        for counter, labels in ((self._outcomes, OUTCOMES), (self._yields, (*YIELDS, OTHER))):
            for label in labels:
                counter.labels(label)  # 0 from the start

    def ended(self, ending: str, stopped_ms: float | None) -> None:
        """An attempt is over. `ending`: the result's status, a yield's reason, or `dropped`."""
        yielded = ending not in OUTCOMES
        self._outcomes.labels("yielded" if yielded else ending).inc()
        if yielded:
            self._yields.labels(ending if ending in YIELDS else OTHER).inc()
        if stopped_ms is not None:
            self._stopped.observe(stopped_ms)

    def collect(self) -> Iterator[Metric]:
        """Now."""
        yield from self._outcomes.collect()
        yield from self._yields.collect()
        for metric in self._stopped.collect():
            for sample in metric.samples:
                if "le" in sample.labels:  # `50`, not `50.0`
                    sample.labels["le"] = sample.labels["le"].removesuffix(".0")
            yield metric


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
    tally: Tally


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
    registry = CollectorRegistry()
    registry.register(_Page(view))
    return generate_latest(registry).decode()


class _Page(Collector):
    def __init__(self, view: View) -> None:
        self._view = view

    def collect(self) -> Iterator[Metric]:
        view, vram = self._view, self._view.vram_free_mb
        free = None if vram is None else vram * 1048576
        for name, text, value in (
            ("queue", "Tasks that do not run yet, and messages that control has not.", view.queued),
            ("running", "Tasks that run.", view.running),
            ("vram_free_bytes", "Free memory of all GPUs.", free),
            ("cpu_load", "The kernel's load average over one minute.", view.cpu_load),
            ("spool_entries", "Messages that control has not.", view.spool_entries),
            ("spool_bytes", "What they take on the disk.", view.spool_bytes),
            ("heartbeat_age_seconds", "Since control's last answer.", view.heartbeat_age_s),
            ("clock_offset_seconds", "How far control's clock is ahead.", view.clock_offset_s),
        ):
            if value is not None:
                yield GaugeMetricFamily(f"rae_node_{name}", text, value=value)
        states, word = [one.value for one in Availability], view.availability.value
        yield _flags("guard_state", "1 for the guard's word, 0 for the others.", "state",
                     {word}, states)  # fmt: skip
        reasons = {reason if reason in REASONS else OTHER for reason in view.reasons}
        yield _flags("guard_reason", "1 for each reason not to work.", "reason",
                     reasons, dict.fromkeys([*REASONS, OTHER]))  # fmt: skip
        yield from view.tally.collect()


def _flags(name: str, text: str, label: str, on: set[str], every: Iterable[str]) -> Metric:
    family = GaugeMetricFamily(f"rae_node_{name}", text, labels=[label])
    for one in every:
        family.add_metric([one], one in on)
    return family
