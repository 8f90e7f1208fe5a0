"""`/metrics`: counters that are updated after each commit, and gauges that are read at the scrape.

Labels are words out of our own code, never a submitter, a task or whatever a node sends.
"""

from __future__ import annotations

import shutil
from collections import Counter as Count
from collections.abc import Iterator
from typing import TYPE_CHECKING

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Histogram,
    disable_created_metrics,
    generate_latest,
)
from prometheus_client.core import GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from rae_control.core.leases import Lease
from rae_control.ledger import views
from rae_control.ledger.base import Moved
from rae_protocol.names import TaskState

if TYPE_CHECKING:
    from rae_control.mesh.mesh import Mesh

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"
_WAITS = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 60, 300, 1800, 7200)
_COMMITS = (0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 5)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128, 256)
# How an attempt may be cut short; whatever else a node says counts as its task's own failure.
_CUT = frozenset(
    {"lease_expired", "no_ack", "node_restarted", "goodbye", "revoked", "E_NOGPU",
     "machine_changed", "too_many_interruptions"}
)  # fmt: skip


class Metrics:
    """What is counted as it happens. A call costs about a microsecond."""

    def __init__(self, registry: CollectorRegistry) -> None:
        disable_created_metrics()  # type: ignore[no-untyped-call]
        self.registry = registry
        self._claims = self._counter("claims", "Claims by whether the ledger confirmed", "outcome")
        self._results = self._counter("results", "Attempts that ended by a word", "outcome")
        self._cut = self._counter("interruptions", "Attempts that were cut short", "reason")
        self._http = self._counter("http_requests", "Requests answered", "operation", "status")
        self._times = {
            name: Histogram(f"rae_{name}_seconds", text, buckets=_WAITS, registry=registry)
            for name, text in (
                ("submit_to_leased", "From the submit to the first lease"),
                ("submit_to_running", "From the submit to the first start"),
                ("lease_to_ack", "From a claim to its ack"),
                ("run", "How long attempts ran"),
            )
        }
        self._commit = Histogram("rae_ledger_commit_seconds", "One commit of the ledger",
                                 buckets=_COMMITS, registry=registry)  # fmt: skip
        self._batch = Histogram("rae_ledger_batch_writes", "Writes in one commit",
                                buckets=_BATCHES, registry=registry)  # fmt: skip

    def _counter(self, name: str, text: str, *labels: str) -> Counter:
        return Counter(f"rae_{name}", text, labels, registry=self.registry)

    def committed(self, seconds: float, writes: int) -> None:
        """The writer committed."""
        self._commit.observe(seconds)
        self._batch.observe(writes)

    def claim_lost(self) -> None:
        """A poll looked for a task, and others had taken what there was."""
        self._claims.labels("lost").inc()

    def answered(self, operation: str, status: int) -> None:
        """A request was answered."""
        self._http.labels(operation, str(status)).inc()

    def moved(self, move: Moved, lease: Lease | None, now_boot: float) -> None:
        """A task went from a state to another; `lease` is that of its attempt, still open."""
        task = move.task
        if move.new == "leased":
            self._claims.labels("won").inc()
            if task["attempts"] == 1:
                self._times["submit_to_leased"].observe(task["updated_at"] - task["created_at"])
        elif move.new == "running":
            if lease is not None:
                self._times["lease_to_ack"].observe(now_boot - lease.claimed)
            if task["attempts"] == 1:
                self._times["submit_to_running"].observe(task["updated_at"] - task["created_at"])
        elif move.old in {"leased", "running"}:
            reason = str(task["reason"])
            if move.new in {"succeeded", "cancelled"}:
                self._results.labels(move.new).inc()
            elif reason in _CUT or reason.startswith("yield_"):
                self._cut.labels(reason).inc()
            else:
                self._results.labels("failed").inc()
            if lease is not None and lease.acked is not None:
                self._times["run"].observe(now_boot - lease.acked)

    def text(self) -> bytes:
        """The page."""
        return generate_latest(self.registry)


class MeshCollector(Collector):
    """Gauges of what the mesh holds at the moment of the question."""

    def __init__(self, mesh: Mesh) -> None:
        self._mesh = mesh

    def describe(self) -> list[Metric]:
        """Nothing is asked of the mesh before the first scrape."""
        return []

    def collect(self) -> Iterator[Metric]:
        """All gauges."""
        mesh = self._mesh
        keeper, health = mesh.keeper, mesh.keeper.health
        states = {state.value: mesh.states[state.value] for state in TaskState}
        yield _by("tasks", "Tasks by state", "state", states)
        lanes, queued = Count[str](), Count[str]()
        for lane in list(mesh.lanes.lanes.values()):
            lanes[str(lane.priority)] += 1
            queued[str(lane.priority)] += lane.queued
        yield _by("lanes", "Lanes with queued tasks", "priority", lanes)
        yield _by("queued", "Queued tasks", "priority", queued)
        yield _by("nodes", "Nodes by state", "state", Count(node.state for node in mesh.nodes))
        blobs = mesh.read(views.stored)
        for kind in ("rewrite", "start", "finish"):
            keeper.repairs.setdefault(kind, 0)
        yield _by("queue_repairs", "Steps that brought the queue after the ledger, since the start",
                  "kind", keeper.repairs)  # fmt: skip
        for name, text, value in (
            ("leases_open", "Open leases", len(mesh.leases)),
            ("polls_open", "Long polls that wait", mesh.dispatch.open_polls),
            ("hold_seconds", "How long no lease is given after a restore, at most",
             0.0 if mesh.hold is None else mesh.hold.left(mesh.clock.boot())),
            ("ledger_backlog_writes", "Writes that wait for a commit", mesh.writer.backlog),
            ("queue_up", "Whether Redis answers", int(keeper.available)),
            ("queue_memory_bytes", "What Redis uses", health.used_memory),
            ("queue_aof_ok", "Whether Redis writes its file", int(health.aof_ok)),
            ("reconcile_age_seconds", "Since the last comparison of queue and ledger",
             mesh.clock.boot() - keeper.compared),
            ("reconcile_seconds", "How long that took", keeper.compare_took),
            ("blobs_bytes", "Bytes of inputs and artifacts, by the rows", blobs),
            ("disk_free_bytes", "Free under the data folder", shutil.disk_usage(mesh.data).free),
        ):  # fmt: skip
            yield GaugeMetricFamily(f"rae_{name}", text, value=value)


def _by(name: str, text: str, label: str, values: dict[str, int]) -> GaugeMetricFamily:
    family = GaugeMetricFamily(f"rae_{name}", text, labels=[label])
    for key, value in sorted(values.items()):
        family.add_metric([key], value)
    return family
