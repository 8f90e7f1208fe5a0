"""`make chaos`: whatever can happen to a mesh, at random moments, under load, and an audit.

Four submitters and four agents work, with a fifth node that delivers twice and too late, while
faults come and go. Then nothing that was answered 2xx may be missing, and nothing may have happened
twice. Exit code 1 on any violation.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import requests

from rae_protocol import models
from rae_protocol.client import RaeClient, uuid7
from rae_protocol.errors import RaeError, RemoteError
from rae_protocol.names import TaskState
from rae_protocol.node_client import NodeClient
from rae_protocol.transport import Backoff
from tools.devmesh import DevMesh, wait_until
from tools.processes import processes_of
from tools.scenarios import faults
from tools.scenarios.audit import Record, audit, drain
from tools.scenarios.disks import LOW_WATER, Disks, enter_namespace
from tools.scenarios.faults import Clocks, Fault
from tools.scenarios.intermediary import Intermediary
from tools.scenarios.load import (
    Body,
    add_nodes,
    beside,
    show_counts,
    show_progress,
    stamp,
    submitter,
)

NAMES = ("n1", "n2", "n3", "n4")
# Shares of the rounds; kills are the likeliest thing in life, too.
WEIGHTS = {
    "kill": 50, "stop": 20, "disk": 15, "clock": 9, "aof": 6, "intermediary": 30, "copy": 20,
}  # fmt: skip
OUTSTANDING = 12
# Some tasks and their leases outlive the silence after which a node's session is over.
LONG, LONG_TTL_S, LONG_S = 0.15, 20.0, (10.0, 17.0)
SETTLE_S = 15.0


def batch(rng: random.Random, stamps: Path) -> list[Body]:
    """A few tasks, some of them in chains."""
    ids = [uuid7() for _ in range(rng.randint(1, 3))]
    chained, kib, long = rng.random() < 0.3, rng.choice((0, 0, 1, 200)), rng.random() < LONG
    return [
        stamp(
            stamps, rng.uniform(*(LONG_S if long else (0.02, 1.5))),
            fails=int(rng.random() < 0.2), kib=kib, task_id=task_id,
            priority=rng.choice((4, 5, 5, 6)),
            depends_on=[ids[place - 1]] if chained and place else [],
            **({"lease_ttl_s": LONG_TTL_S} if long else {}),
        )
        for place, task_id in enumerate(ids)
    ]  # fmt: skip


def few_at_once(client: RaeClient, mine: list[str], stop: threading.Event) -> None:
    """Wait for the oldest ones while there are too many."""
    while len(mine) > OUTSTANDING and not stop.is_set():
        with contextlib.suppress(TimeoutError, RaeError):
            client.wait(mine[0], 1.0)
            mine.pop(0)


def latecomer(
    mesh: DevMesh, url: str, rng: random.Random, record: Record, stop: threading.Event
) -> None:
    """A node that never sends a heartbeat: half of its results come twice, half after the lease."""
    enrolled = mesh.admin.enrol("late")
    client = NodeClient(
        url, "late", enrolled.enrolment_secret, public_keys=enrolled.control_public_keys,
        backoff=Backoff(tries=8, base_s=0.1, cap_s=2.0),
    )  # fmt: skip
    request = models.RegisterRequest(node_id="late", ack=True, machine="late", slots=["cpu0"])
    while not stop.is_set():
        try:
            client.register(request)
            task = client.poll(wait_s=1.0, slots=["cpu0"]).task
            if task is None:
                continue
            lease = models.LeaseRef(
                task_id=task.task_id, attempt=task.attempt, lease_id=task.lease_id
            )
            client.ack(lease)
            if rng.random() < 0.5:
                _deliver(client, lease, record)
                _deliver(client, lease, record)
                record.count("results sent twice")
            else:
                _wait_for_expiry(mesh.admin, lease, stop)
                _deliver(client, lease, record)
                record.count("results sent too late")
        except RaeError:
            record.count("calls of the late node without an answer")
            stop.wait(0.5)


def _wait_for_expiry(admin: RaeClient, lease: models.LeaseRef, stop: threading.Event) -> None:
    """Until control has closed the lease; each of its restarts grants it a full ttl."""
    while not stop.wait(0.5):
        with contextlib.suppress(RaeError):
            view = admin.task(lease.task_id)
            if view.attempts > lease.attempt or view.state is not TaskState.RUNNING:
                return


def _deliver(client: NodeClient, lease: models.LeaseRef, record: Record) -> None:
    result = models.Result(
        **lease.model_dump(), status="succeeded", result={"attempt": lease.attempt}
    )
    key = (lease.task_id, lease.attempt)
    try:
        client.result(result)
    except RemoteError as error:
        if error.status != 409:
            raise
        with record.lock:
            record.refused.add(key)
            if key in record.delivered:
                record.problems.append(f"{key}: the same result got 2xx first and 409 later")
    else:
        with record.lock:
            record.delivered.add(key)


class Disturber:
    """Begins a fault, waits a moment, again; each ends when its time is over.

    Things die while others are dead, but only one of the rest is wrong at a time.
    """

    def __init__(
        self, mesh: DevMesh, kinds: Mapping[str, Fault], away: set[str], rng: random.Random
    ) -> None:
        self._mesh, self._kinds, self._away, self._rng = mesh, kinds, away, rng
        self._going: list[tuple[float, str, ExitStack]] = []

    def run(self, rounds: int, record: Record, broken: Callable[[], bool]) -> None:
        """All rounds, and the ends of all faults."""
        for number in range(rounds):
            pause = time.monotonic() + self._rng.uniform(0.2, 2.5)
            # Most faults meet a control that works; some one that is just starting, on any machine.
            patience = pause + (SETTLE_S if self._rng.random() < 0.8 else 0.0)
            while not broken():
                self._end_due(time.monotonic())
                now = time.monotonic()
                if now >= patience or (now >= pause and answers(self._mesh)):
                    name = self._begin()
                    if name is not None:
                        record.count(name)
                        break
                time.sleep(0.05)
                self.revive()
            show_progress(f"round {number + 1} of {rounds}")
        self._end_due(float("inf"))
        self.revive()

    def _begin(self) -> str | None:
        kind = faults.draw(self._kinds, WEIGHTS, self._rng)
        if kind != "kill" and any(other != "kill" for _, other, _ in self._going):
            return None
        stack = ExitStack()
        try:
            name, lasts = stack.enter_context(self._kinds[kind]())
        except faults.Missed:
            return None
        self._going.append((time.monotonic() + lasts, kind, stack))
        return name

    def _end_due(self, now: float) -> None:
        for fault in list(self._going):
            if fault[0] <= now:
                self._going.remove(fault)
                fault[2].close()

    def revive(self) -> None:
        """Start agents that ended by themselves, as systemd would (a full disk ends one)."""
        for node in self._mesh.nodes.values():
            if not node.running and node.name not in self._away:
                node.start()

    def all_back(self) -> bool:
        """Whether every node is online; an agent that another one replaced has ended meanwhile."""
        self.revive()
        with contextlib.suppress(RaeError):
            return {view.node_id for view in self._mesh.admin.nodes()} >= set(self._mesh.nodes)
        return False


def answers(mesh: DevMesh) -> bool:
    """Whether control takes calls now."""
    try:
        return requests.get(f"{mesh.url}/healthz", timeout=0.5).ok
    except requests.RequestException:
        return False


def campaign(folder: Path, disks: Disks, rounds: int, seed: int, kinds: tuple[str, ...]) -> int:
    """Work, disturb, let finish, audit; returns the exit code."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    record, started, clocks, away = Record(), time.monotonic(), Clocks(folder), set[str]()
    stamps = folder / "stamps"
    print(f"chaos: {rounds} rounds of {', '.join(kinds)}; seed {seed}", flush=True)
    env = clocks.env if "clock" in kinds else lambda _who: {}
    with (
        DevMesh((), control={"low_water_bytes": LOW_WATER}, data=disks.data, env=env) as mesh,
        Intermediary(mesh.url) as between,
    ):
        settings = {"disk_low_mb": 1, "rae_endpoint": between.url, "slow_retry_sec": 1}
        add_nodes(mesh, NAMES, folder, **settings)
        made: Mapping[str, Fault] = {
            "kill": partial(
                faults.kill, mesh, rng, NAMES, ("gunicorn", "worker", "redis"), away
            ),
            "stop": partial(faults.stop, mesh, rng),
            "disk": partial(faults.disk, mesh, rng, disks),
            "clock": partial(faults.clock, mesh, rng, clocks),
            "aof": partial(faults.aof, mesh, rng, disks.folder("redis")),
            "intermediary": partial(faults.intermediary, rng, between),
            "copy": partial(faults.copy, mesh, rng),
        }  # fmt: skip
        jobs = []
        for number in range(4):
            token = mesh.admin.add_token(f"s{number}", "submit").token
            client, own = RaeClient(between.url, token), random.Random(rng.randrange(2**32))  # noqa: S311
            jobs.append(
                submitter(client, record, partial(batch, own, stamps), partial(few_at_once, client))
            )
        own = random.Random(rng.randrange(2**32))  # noqa: S311
        disturber = Disturber(mesh, {kind: made[kind] for kind in kinds}, away, rng)
        with beside(*jobs, partial(latecomer, mesh, between.url, own, record)) as broken:
            disturber.run(rounds, record, broken)
            # Each restart of control grants leases more time; in the calm one does run out.
            wait_until(lambda: record.refused or broken(), 60, "a late result got 409")
        mesh.wait_ready()
        wait_until(disturber.all_back, 60, "all nodes are online again")
        drain(mesh)  # what does not end is for the audit to tell
        counts = audit(mesh, stamps, record)
        logs = mesh.tails() if record.problems else ""
    replaced = {f"calls answered with {kind}": n for kind, n in sorted(between.replaced.items())}
    seconds = round(time.monotonic() - started)
    show_counts({**dict(sorted(record.counts.items())), **replaced, **counts, "seconds": seconds})
    if record.problems:
        print("\n".join([logs, "VIOLATIONS:", *record.problems[:50]]), file=sys.stderr)
        again = f"make chaos ROUNDS={rounds} SEED={seed} FAULTS={','.join(kinds)}"
        print(f"again with: {again}", file=sys.stderr)
        return 1
    print(f"chaos: nothing lost, nothing twice (seed {seed})")
    return 0


def options(parser: argparse.ArgumentParser) -> None:
    """How long, and which."""
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, printed")
    parser.add_argument(
        "--faults", type=_kinds, default=",".join(WEIGHTS), help="default: %(default)s"
    )


def _kinds(text: str) -> tuple[str, ...]:
    kinds = tuple(text.split(","))
    if unknown := set(kinds) - set(WEIGHTS):
        names = f"{','.join(sorted(unknown))}: known are {', '.join(WEIGHTS)}"
        raise argparse.ArgumentTypeError(names)
    return kinds


def run(args: argparse.Namespace) -> int:
    """One campaign; returns the exit code."""
    kinds: tuple[str, ...] = args.faults
    if "disk" in kinds:
        enter_namespace()
    seed = random.SystemRandom().randrange(10**9) if args.seed is None else args.seed
    with tempfile.TemporaryDirectory(prefix="rae-chaos-", ignore_cleanup_errors=True) as name:
        folder = Path(name)
        disks = Disks(folder / "data")
        try:
            if "disk" in kinds:
                disks.mount(NAMES)
            return campaign(folder, disks, args.rounds, seed, kinds)
        finally:
            for pid in processes_of(folder):
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            if "disk" in kinds:
                disks.unmount()
