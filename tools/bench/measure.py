"""What every part of `make bench` measures with: percentiles, processes, a generator of load."""

from __future__ import annotations

import json
import select
import statistics
import subprocess
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any, cast

import psutil
from redis import Redis

from tools.devmesh import DevMesh
from tools.processes import MeshError
from tools.scenarios.outage import CONTRACT

# The contract's periods; only the limits that a generator of load would meet are lifted.
CONTROL: Mapping[str, object] = {
    **CONTRACT, "rate_limit_per_s": 100_000, "rate_limit_burst": 100_000,
}  # fmt: skip
NODE: Mapping[str, object] = {
    "heartbeat_interval_sec": 30, "poll_interval_sec": 45, "max_concurrent_cpu": 1,
}  # fmt: skip
ANSWER_S = 600.0


def percentile(values: Sequence[float], percent: int) -> float:
    """The value that this share does not exceed."""
    return statistics.quantiles(values, n=100, method="inclusive")[percent - 1]


def in_ms(values: Sequence[float], digits: int = 1) -> tuple[str, str]:
    """Median and 99 %, as cells of a table."""
    found = statistics.median(values), percentile(values, 99)
    return f"{found[0]:.{digits}f} ms", f"{found[1]:.{digits}f} ms"


def tree(pid: int) -> list[psutil.Process]:
    """A process and all its descendants."""
    root = psutil.Process(pid)
    return [root, *root.children(recursive=True)]


def cpu_s(processes: Iterable[psutil.Process]) -> float:
    """Seconds of CPU that live processes, and children that they waited for, have used."""
    times = [process.cpu_times() for process in processes]
    return sum(t.user + t.system + t.children_user + t.children_system for t in times)


def pss_mb(processes: Iterable[psutil.Process]) -> float:
    """Memory, with what is shared counted in parts, in MB."""
    return float(sum(process.memory_full_info().pss for process in processes)) / 2**20


def control_processes(mesh: DevMesh) -> list[psutil.Process]:
    """Processes of control, without Redis."""
    redis = mesh.pid("redis")
    return [process for process in tree(mesh.control.pid) if process.pid != redis]


def in_redis(mesh: DevMesh) -> int:
    """How many tasks the queue shows."""
    redis = Redis.from_url(mesh.redis_url)
    return sum(int(redis.llen(key)) for key in redis.scan_iter("rq:queue:*"))


@dataclass(frozen=True, slots=True)
class Generator:
    """A process that makes load (`load.py`); what it burns is counted apart."""

    entry: IO[str]
    output: IO[str]

    def line(self, timeout_s: float = ANSWER_S) -> dict[str, Any]:
        """What it says next. Raises MeshError."""
        if not select.select([self.output], [], [], timeout_s)[0]:
            raise MeshError(f"the load generator said nothing in {timeout_s:g} s")
        answer: dict[str, Any] = json.loads(self.output.readline() or "{}")
        if not answer:
            raise MeshError("the load generator ended early")
        return answer

    def finish(self) -> dict[str, Any]:
        """Say that it is over, and return the answer. Raises MeshError."""
        self.entry.close()
        return self.line()


@contextmanager
def generator(
    verb: str, mesh: DevMesh, nodes: Mapping[str, str], **more: object
) -> Iterator[Generator]:
    """A job of the generator's with these nodes and their secrets, until the block ends."""
    job = {"url": mesh.url, "token": mesh.credentials()["submit_token"], "nodes": dict(nodes)}
    command = [sys.executable, "-m", "tools.bench.load", verb]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        try:
            entry = cast("IO[str]", process.stdin)
            entry.write(json.dumps({**job, **more}) + "\n")
            entry.flush()
            yield Generator(entry, cast("IO[str]", process.stdout))
        finally:
            process.kill()


def load(verb: str, mesh: DevMesh, nodes: Mapping[str, str], **more: object) -> dict[str, Any]:
    """The answer of a job. Raises MeshError."""
    with generator(verb, mesh, nodes, **more) as working:
        return working.finish()


def enrol(mesh: DevMesh, number: int) -> dict[str, str]:
    """Enrol nodes; returns their secrets."""
    admin = mesh.admin
    return {f"bench{k}": admin.enrol(f"bench{k}").enrolment_secret for k in range(number)}
