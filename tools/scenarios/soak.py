"""`make soak`: steady work for a long time, and everything stays as big as it was.

Four nodes; some seven tasks a second with inputs, artifacts, chains and failures; cancels, owners
who come back, agents and Redis that start again. Finished tasks are forgotten after minutes instead
of months, so that the disk must come to rest, too. After the warm-up (a third of the time, in which
control and Redis are killed, too) memory, file descriptors, threads, Redis's keys and the disk of
the first quarter are held against the last. Exit code 1 when something grows, or a check of the
ledger finds something.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import statistics
import sys
import threading
import time
from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import psutil
from redis import Redis, RedisError

from rae_protocol.client import RaeClient, uuid7
from rae_protocol.errors import RaeError
from tools.devmesh import DevMesh
from tools.processes import MeshError
from tools.scenarios import faults
from tools.scenarios.audit import Record, drain, ledger_problems
from tools.scenarios.load import (
    Body,
    add_nodes,
    beside,
    show_counts,
    show_progress,
    stamp,
    submitter,
)

NODES = ("n1", "n2", "n3", "n4")
# These two are never restarted after the warm-up: a restart would hide what they collect.
STEADY = ("n1", "n2")
WEIGHTS = {"owner": 2, "restart": 1, "kill": 1}
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
        with contextlib.suppress(psutil.Error):
            process = psutil.Process(pid)
            growth.add(at, what, "MB", process.memory_full_info().pss / 2**20)
            growth.add(at, what, "fds", process.num_fds())
            growth.add(at, what, "threads", process.num_threads())
    with contextlib.suppress(RedisError):
        growth.add(at, "redis", "keys", float(Redis.from_url(mesh.redis_url).dbsize()))
    for what in ("blobs", "logs", "nodes"):
        growth.add(at, what, "disk MB", size_mb(mesh.data / what))
    ledger = sum(path.stat().st_size for path in mesh.data.glob("ledger.db*"))
    growth.add(at, "ledger", "disk MB", ledger / 2**20)
    growth.add(at, "the mesh", "processes", len(psutil.Process().children(recursive=True)))


def size_mb(folder: Path) -> float:
    """What files below it hold."""
    total = 0
    for place, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # gone meanwhile
                total += Path(place, name).lstat().st_size
    return total / 2**20


def batch(client: RaeClient, rng: random.Random) -> list[Body]:
    """A command, one with an input, and a task that may fail or leave an artifact."""
    blob = client.upload_blob(rng.randbytes(rng.randrange(1, 30_000)))
    first, second, third = (uuid7() for _ in range(3))
    return [
        {"task_id": first, "kind": "cli", "params": {"command": "true"}},
        {"task_id": second, "kind": "cli", "inputs": {"f": {"sha256": blob}},
         "params": {"command": "sha256sum", "args": ["f"]}},
        stamp(Path("/dev/null"), rng.uniform(0, 0.3), fails=int(rng.random() < 0.05),
              kib=rng.choice((0, 20, 100)), task_id=third, depends_on=[first]),
    ]  # fmt: skip


@dataclass(slots=True)
class Pace:
    """So many tasks a second, and now and then a cancel."""

    client: RaeClient
    rng: random.Random
    record: Record
    due: float = field(default_factory=time.monotonic)

    def __call__(self, mine: list[str], stop: threading.Event) -> None:
        """Wait until the next batch is due."""
        if mine and self.rng.random() < 0.1:
            with contextlib.suppress(RaeError):
                self.client.cancel(self.rng.choice(mine[-6:]))
                self.record.count("cancels")
        del mine[:-6]
        self.due += 3 / PER_S
        stop.wait(max(0.0, self.due - time.monotonic()))


def disturb(
    mesh: DevMesh, rng: random.Random, warm_s: float, pace: float, record: Record,
    stop: threading.Event,
) -> None:  # fmt: skip
    """Owners who come back, and parts that start again; control's only while it warms up."""
    began = time.monotonic()
    while not stop.wait(rng.uniform(10, 30) * pace):
        warm = time.monotonic() - began >= warm_s
        nodes = [name for name in NODES if not warm or name not in STEADY]
        parts = () if warm else ("worker", "redis")
        kinds = {
            "owner": partial(faults.owner, mesh, rng),
            "restart": partial(faults.restart, mesh, rng, nodes),
            "kill": partial(faults.kill, mesh, rng, nodes, parts, set()),
        }
        # While it warms up a kill is as likely for each part of control as for an agent.
        kind = faults.draw(kinds, WEIGHTS if warm else {**WEIGHTS, "kill": 3}, rng)
        with contextlib.suppress(faults.Missed), kinds[kind]() as named:
            record.count(named[0])


def watch(mesh: DevMesh, growth: Growth, seconds: float, broken: Callable[[], bool]) -> None:
    """Sample until the time is over."""
    began, lap = time.monotonic(), threading.Event()
    while (at := time.monotonic() - began) < seconds and not broken():
        with contextlib.suppress(MeshError):  # a part that starts again has no pid file
            look(mesh, growth, at)
        show_progress(f"{at:.0f} of {seconds:.0f} s")
        lap.wait(SAMPLE_S)


def options(parser: argparse.ArgumentParser) -> None:
    """How long."""
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--seed", type=int, default=1)


def run(args: argparse.Namespace) -> int:
    """The whole course; returns the exit code."""
    minutes, seed = args.minutes, args.seed
    rng, record = random.Random(seed), Record()  # noqa: S311 - reproducible, not secret
    seconds = minutes * 60
    warm_s, keep_s = seconds / 3, min(600.0, seconds / 10)
    print(f"soak: {minutes:g} minutes, seed {seed}; warm after {warm_s:.0f} s", flush=True)
    control = {"retention_days": keep_s / 86400, "retention_every_s": keep_s / 20,
               "blob_grace_s": keep_s}  # fmt: skip
    growth = Growth(warm_s)
    with DevMesh((), control=control) as mesh:
        add_nodes(mesh, NODES, mesh.data)
        client, other = mesh.rae, random.Random(seed + 1)  # noqa: S311
        work = submitter(client, record, partial(batch, client, rng), Pace(client, rng, record))
        faults_ = partial(disturb, mesh, other, warm_s, min(1.0, minutes / 20), record)
        with beside(work, faults_) as broken:
            watch(mesh, growth, seconds, broken)
        rest, found = drain(mesh), ledger_problems(mesh)
    lines, problems = growth.table()
    print("\n".join(lines))
    show_counts({"tasks submitted": len(record.submitted), **dict(sorted(record.counts.items()))})
    problems += [f"{rest} tasks have not ended"] if rest else []
    problems += found
    if problems:
        print("\n".join(["soak: NOT flat", *problems]), file=sys.stderr)
        return 1
    print(f"soak: flat after {minutes:g} minutes (seed {seed})")
    return 0
