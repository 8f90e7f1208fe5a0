"""`make soak`: steady work for a long time, and everything stays as big as it was.

Four nodes; some seven tasks a second with inputs, artifacts, chains and failures; cancels, owners
who come back, agents and Redis that start again. Finished tasks are forgotten after minutes instead
of months, so that the disk must come to rest, too. After the warm-up (a third of the time, in which
control and Redis are killed, too) memory, file descriptors, threads, Redis's keys and the disk of
the first quarter are held against the last. Exit code 1 when something grows, or `rae-control
check` finds something.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import statistics
import subprocess
import sys
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from redis import Redis, RedisError

from rae_protocol.client import RaeClient, uuid7
from rae_protocol.errors import RaeError
from tools.bench_ours import tree
from tools.devmesh import DevMesh, MeshError, exit_on_signals, install_stamp

NODES = ("n1", "n2", "n3", "n4")
# These two are never restarted after the warm-up: a restart would hide what they collect.
STEADY = ("n1", "n2")
PER_S = 7.0
SAMPLE_S = 5.0
# How much bigger the last quarter may be than the first: a share, and what is noise anyhow.
SLACK = 0.10
NOISE = {"MB": 4.0, "fds": 8.0, "threads": 3.0, "keys": 150.0, "disk MB": 12.0, "processes": 4.0}


@dataclass(slots=True)
class Growth:
    """Samples of everything, by name and unit."""

    warm_after: float
    values: dict[tuple[str, str], list[tuple[float, float]]] = field(
        default_factory=lambda: defaultdict(list)
    )

    def add(self, at: float, what: str, unit: str, value: float) -> None:
        """One sample, `at` seconds after the start."""
        self.values[what, unit].append((at, value))

    def table(self) -> tuple[list[str], list[str]]:
        """Lines for people, and what has grown."""
        lines, grown = [], []
        for (what, unit), samples in sorted(self.values.items()):
            warm = [value for at, value in samples if at >= self.warm_after]
            quarter = max(1, len(warm) // 4)
            first, last = statistics.median(warm[:quarter]), statistics.median(warm[-quarter:])
            bad = last > first * (1 + SLACK) + NOISE[unit]
            line = f"{what:<26}{unit:<10}{first:>9.1f} → {last:>9.1f}   peak {max(warm):>9.1f}"
            lines.append(line + ("   GROWS" if bad else ""))
            if bad:
                grown.append(f"{what} ({unit}): {first:.1f} → {last:.1f}")
        return lines, grown


def look(mesh: DevMesh, growth: Growth, at: float) -> None:
    """Take a sample. What is being started again is left out."""
    parts = {"control": mesh.pid("worker"), "gunicorn": mesh.pid("gunicorn")}
    parts |= {"serve": mesh.control.pid, "redis": mesh.pid("redis")}
    parts |= {f"agent {name}": mesh.nodes[name].pid for name in STEADY}
    for what, pid in parts.items():
        folder = Path(f"/proc/{pid}")
        try:
            pss = next(
                int(line.split()[1])
                for line in (folder / "smaps_rollup").read_text().splitlines()
                if line.startswith("Pss:")
            )
            growth.add(at, what, "MB", pss / 1024)
            growth.add(at, what, "fds", len(list((folder / "fd").iterdir())))
            growth.add(at, what, "threads", len(list((folder / "task").iterdir())))
        except (OSError, StopIteration):
            continue
    with contextlib.suppress(RedisError):
        growth.add(at, "redis", "keys", float(Redis.from_url(mesh.redis_url).dbsize()))
    for what in ("blobs", "logs", "nodes"):
        growth.add(at, what, "disk MB", size_mb(mesh.data / what))
    ledger = sum(path.stat().st_size for path in mesh.data.glob("ledger.db*"))
    growth.add(at, "ledger", "disk MB", ledger / 2**20)
    growth.add(at, "the mesh", "processes", len(tree(os.getpid())) - 1)


def size_mb(folder: Path) -> float:
    """What files below it hold."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                total += Path(place, name).lstat().st_size
            except OSError:
                continue  # gone meanwhile
    return total / 2**20


class Work:
    """Submits, uploads, cancels; counts what control took."""

    def __init__(self, mesh: DevMesh, rng: random.Random) -> None:
        self._mesh, self._rng = mesh, rng
        self.counts: Counter[str] = Counter()
        self._recent: list[str] = []

    def run(self, stop: threading.Event) -> None:
        """Until told to stop."""
        rae, due = self._mesh.rae, time.monotonic()
        while not stop.is_set():
            due += 3 / PER_S
            try:
                self._three(rae)
            except RaeError:
                self.counts["calls without an answer"] += 1
            stop.wait(max(0.0, due - time.monotonic()))

    def _three(self, rae: RaeClient) -> None:
        rng = self._rng
        blob = rae.upload_blob(rng.randbytes(rng.randrange(1, 30_000)))
        ids = [uuid7() for _ in range(3)]
        kib = rng.choice((0, 20, 100))
        stamped = {
            "task": "stamp",
            "params": {
                "stamps": "/dev/null",
                "seconds": round(rng.uniform(0, 0.3), 2),
                "fails": int(rng.random() < 0.05),
                "kib": kib,
            },
        }
        bodies: list[dict[str, Any]] = [
            {"task_id": ids[0], "kind": "cli", "params": {"command": "true"}},
            {"task_id": ids[1], "kind": "cli", "inputs": {"f": {"sha256": blob}},
             "params": {"command": "sha256sum", "args": ["f"]}},
            {"task_id": ids[2], "kind": "python", "params": stamped, "depends_on": ids[:1],
             "artifacts": [{"name": "bytes"}] if kib else []},
        ]  # fmt: skip
        rae.submit(bodies)
        self.counts["tasks submitted"] += len(bodies)
        self._recent = [*self._recent[-30:], *ids]
        if rng.random() < 0.1:
            rae.cancel(rng.choice(self._recent[-6:]))
            self.counts["cancels"] += 1


def disturb(mesh: DevMesh, rng: random.Random, warm_s: float, stop: threading.Event,
            counts: Counter[str], pace: float) -> None:  # fmt: skip
    """Owners who come back, and parts that start again; control's only while it warms up."""
    began = time.monotonic()
    while not stop.wait(rng.uniform(10, 30) * pace):
        warm = time.monotonic() - began >= warm_s
        name = rng.choice([name for name in NODES if not warm or name not in STEADY])
        kinds = ["pause", "pause", "agent stopped", "agent killed"]
        kind = rng.choice(kinds if warm else [*kinds, "worker", "redis"])
        if kind == "pause":
            mesh.nodes[rng.choice(NODES)].owner("pause", "5s")
        elif kind in {"worker", "redis"}:
            mesh.kill(kind)
        else:
            (mesh.nodes[name].stop if kind == "agent stopped" else mesh.nodes[name].kill)()
            mesh.nodes[name].start()
        counts[{"pause": "yields to owners"}.get(kind, f"{kind} again")] += 1


def run(minutes: float, seed: int) -> int:
    """The whole course; returns the exit code."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    seconds = minutes * 60
    warm_s, keep_s = seconds / 3, min(600.0, seconds / 10)
    print(f"soak: {minutes:g} minutes, seed {seed}; warm after {warm_s:.0f} s", flush=True)
    control = {"retention_days": keep_s / 86400, "retention_every_s": keep_s / 20,
               "blob_grace_s": keep_s}  # fmt: skip
    with DevMesh((), control=control) as mesh:
        tasks = install_stamp(mesh.data)
        for name in NODES:
            mesh.add_node(name, {"task_paths": [str(tasks)], "max_concurrent_cpu": 2})
        for name in NODES:
            mesh.wait_node(name, "online")
        growth, stop, work = Growth(warm_s), threading.Event(), Work(mesh, rng)
        pace = min(1.0, minutes / 20)
        with ThreadPoolExecutor(2) as pool:
            jobs = [
                pool.submit(work.run, stop),
                pool.submit(disturb, mesh, random.Random(seed + 1), warm_s, stop, work.counts,  # noqa: S311
                            pace),
            ]  # fmt: skip
            try:
                watch(mesh, growth, seconds, lambda: any(job.done() for job in jobs))
            finally:
                stop.set()
        for job in jobs:
            job.result()
        rest = drain(mesh)
        checked = subprocess.run(
            [sys.executable, "-m", "rae_control.cli.rae_control", "check",
             "--data", str(mesh.data)], capture_output=True, text=True, check=False,
        )  # fmt: skip
    lines, problems = growth.table()
    print("\n".join(lines))
    print("\n".join(f"{name:<36}{number:>8}" for name, number in sorted(work.counts.items())))
    print(checked.stdout.strip() or checked.stderr.strip())
    problems += [f"{rest} tasks have not ended"] if rest else []
    problems += ["`rae-control check` is not clean"] if checked.returncode else []
    if problems:
        print("\n".join(["soak: NOT flat", *problems]), file=sys.stderr)
        return 1
    print(f"soak: flat after {minutes:g} minutes (seed {seed})")
    return 0


def watch(mesh: DevMesh, growth: Growth, seconds: float, broken: Callable[[], bool]) -> None:
    """Sample until the time is over."""
    began, lap = time.monotonic(), threading.Event()
    while (at := time.monotonic() - began) < seconds and not broken():
        with contextlib.suppress(MeshError):  # a part that starts again has no pid file
            look(mesh, growth, at)
        if sys.stdout.isatty():
            print(f"\r\x1b[K{at:.0f} of {seconds:.0f} s", end="", flush=True)
        lap.wait(SAMPLE_S)


def drain(mesh: DevMesh, timeout_s: float = 180.0) -> int:
    """Let everything end; returns how many tasks have not."""
    end, left = time.monotonic() + timeout_s, -1
    while left and time.monotonic() < end:
        left = sum(
            len(mesh.admin.tasks(state=state, limit=500).tasks)
            for state in ("waiting", "queued", "leased", "running")
        )
        time.sleep(0.5)
    return left


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Steady work for a long time; nothing may grow.")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)
    args = parser.parse_args(argv)
    exit_on_signals()
    try:
        return run(args.minutes, args.seed)
    except KeyboardInterrupt:
        return 130
    except MeshError as error:
        print(f"soak: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
