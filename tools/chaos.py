"""`make chaos`: whatever can happen to a mesh, at random moments, under load, and an audit.

Four submitters and four agents work, with a fifth node that delivers twice and too late, while
faults come and go (`tools/faults.py`). Then nothing that was answered 2xx may be missing, and
nothing may have happened twice. Exit code 1 on any violation.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any

import requests

from rae_protocol import models
from rae_protocol.client import RaeClient, uuid7
from rae_protocol.errors import RaeError, RemoteError
from rae_protocol.names import TaskState
from rae_protocol.node_client import NodeClient
from rae_protocol.transport import Backoff
from tools.chaos_audit import Record, audit
from tools.devmesh import (
    DevMesh,
    MeshError,
    exit_on_signals,
    install_stamp,
    processes_of,
    wait_until,
)
from tools.faults import KINDS, LOW_WATER, Clocks, Disks, Fault, Faults, enter_namespace
from tools.intermediary import Intermediary

OUTSTANDING = 12
# Some tasks and their leases outlive the silence after which a node's session is over.
LONG, LONG_TTL_S, LONG_S = 0.15, 20.0, (10.0, 17.0)
SETTLE_S = 15.0
END_TIMEOUT_S = 180.0


def submitter(
    client: RaeClient, stamps: Path, seed: int, record: Record, stop: threading.Event
) -> None:
    """Submit a few tasks at a time, some of them in chains; never too many at once."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    mine: list[str] = []
    while not stop.is_set():
        ids = [uuid7() for _ in range(rng.randint(1, 3))]
        chained, kib = rng.random() < 0.3, rng.choice((0, 0, 1, 200))
        long = rng.random() < LONG
        bodies: list[dict[str, Any]] = [
            {
                "task_id": task_id,
                "kind": "python",
                "params": {
                    "task": "stamp",
                    "params": {
                        "stamps": str(stamps),
                        "seconds": round(rng.uniform(*(LONG_S if long else (0.02, 1.5))), 2),
                        "fails": int(rng.random() < 0.2),
                        "kib": kib,
                    },
                },
                "artifacts": [{"name": "bytes"}] if kib else [],
                **({"lease_ttl_s": LONG_TTL_S} if long else {}),
                "priority": rng.choice((4, 5, 5, 6)),
                "depends_on": [ids[place - 1]] if chained and place else [],
            }
            for place, task_id in enumerate(ids)
        ]
        try:
            client.submit(bodies)
        except RaeError:
            record.count("submits without an answer")
        else:
            with record.lock:
                record.submitted.update(ids)
            mine += ids
        while len(mine) > OUTSTANDING and not stop.is_set():
            try:
                client.wait(mine[0], 1.0)
                mine.pop(0)
            except (TimeoutError, RaeError):
                continue


def latecomer(
    mesh: DevMesh, url: str, seed: int, record: Record, stop: threading.Event
) -> None:  # fmt: skip
    """A node that never sends a heartbeat: half of its results come twice, half after the lease."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
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
                _deliver(client, task, record)
                _deliver(client, task, record)
                record.count("results sent twice")
            else:
                _wait_for_expiry(mesh.admin, task, stop)
                _deliver(client, task, record)
                record.count("results sent too late")
        except RaeError:
            record.count("calls of the late node without an answer")
            stop.wait(0.5)


def _wait_for_expiry(admin: RaeClient, task: models.LeasedTask, stop: threading.Event) -> None:
    """Until control has closed the lease; each of its restarts grants it a full ttl."""
    while not stop.wait(0.5):
        try:
            view = admin.task(task.task_id)
        except RaeError:
            continue
        if view.attempts > task.attempt or view.state is not TaskState.RUNNING:
            return


def _deliver(client: NodeClient, task: models.LeasedTask, record: Record) -> None:
    result = models.Result(
        task_id=task.task_id, attempt=task.attempt, lease_id=task.lease_id, status="succeeded",
        result={"attempt": task.attempt},
    )  # fmt: skip
    key = (task.task_id, task.attempt)
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


def disturb(
    mesh: DevMesh, faults: Faults, rounds: int, rng: random.Random, record: Record,
    stop: threading.Event,
) -> None:  # fmt: skip
    """Begin a fault, wait a moment, again; each ends when its time is over.

    Things die while others are dead, but only one of the rest is wrong at a time.
    """
    going: list[tuple[float, Fault]] = []
    for number in range(rounds):
        pause = time.monotonic() + rng.uniform(0.2, 2.5)
        # Most faults meet a control that works; some one that is just starting, on any machine.
        patience = pause + (SETTLE_S if rng.random() < 0.8 else 0.0)
        while not stop.is_set():
            end_due(going, time.monotonic())
            now = time.monotonic()
            if now >= patience or (now >= pause and answers(mesh)):
                fault = faults.draw()
                alone = fault.deadly or all(other.deadly for _, other in going)
                if alone and fault.begin():
                    break
            stop.wait(0.05)
            faults.revive()
        else:
            break
        record.count(fault.name)
        going.append((time.monotonic() + fault.lasts, fault))
        if sys.stdout.isatty():
            print(f"\r\x1b[Kround {number + 1} of {rounds}", end="", flush=True)
    end_due(going, float("inf"))
    faults.revive()


def answers(mesh: DevMesh) -> bool:
    """Whether control takes calls now."""
    try:
        return requests.get(f"{mesh.url}/healthz", timeout=0.5).ok
    except requests.RequestException:
        return False


def end_due(going: list[tuple[float, Fault]], now: float) -> None:
    """End the faults whose time is over."""
    for due, fault in list(going):
        if due <= now:
            going.remove((due, fault))
            fault.end()


def run(rounds: int, seed: int, kinds: tuple[str, ...]) -> int:
    """One campaign; returns the exit code."""
    folder = Path(tempfile.mkdtemp(prefix="rae-chaos-"))
    disks, clocks = Disks(folder / "data"), Clocks(folder)
    names = [f"n{number}" for number in range(1, 5)]
    try:
        if "disk" in kinds:
            disks.mount(names)
        return campaign(folder, disks, clocks, names, rounds, seed, kinds)
    finally:
        for pid in processes_of(folder):
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        if "disk" in kinds:
            disks.unmount()
        shutil.rmtree(folder, ignore_errors=True)


def campaign(
    folder: Path, disks: Disks, clocks: Clocks, names: list[str], rounds: int, seed: int,
    kinds: tuple[str, ...],
) -> int:  # fmt: skip
    """Work, disturb, let finish, audit; returns the exit code."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    record, stop = Record(), threading.Event()
    print(f"chaos: {rounds} rounds of {', '.join(kinds)}; seed {seed}", flush=True)
    started = time.monotonic()
    env = clocks.env if "clock" in kinds else lambda _who: {}
    control = {"low_water_bytes": LOW_WATER}
    with (
        DevMesh((), control=control, data=disks.data, env=env) as mesh,
        Intermediary(mesh.url) as between,
    ):
        stamps, tasks = folder / "stamps", install_stamp(folder)
        for name in names:
            settings = {
                "task_paths": [str(tasks)], "max_concurrent_cpu": 2, "disk_low_mb": 1,
                "rae_endpoint": between.url, "slow_retry_sec": 1,
            }  # fmt: skip
            mesh.add_node(name, settings)
        for name in names:
            mesh.wait_node(name, "online")
        clients = [
            RaeClient(between.url, mesh.admin.add_token(f"s{number}", "submit").token)
            for number in range(4)
        ]
        with ThreadPoolExecutor(5) as pool:
            workers = [
                pool.submit(submitter, client, stamps, rng.randrange(2**32), record, stop)
                for client in clients
            ]
            late = rng.randrange(2**32)
            workers.append(pool.submit(latecomer, mesh, between.url, late, record, stop))
            try:
                faults = Faults(mesh, rng, disks, clocks, between, kinds)
                disturb(mesh, faults, rounds, rng, record, stop)
                # Each restart of control grants leases more time; in the calm one does run out.
                wait_until(lambda: record.refused, 60, "a late result got 409")
            finally:
                stop.set()
        for worker in workers:
            worker.result()
        mesh.wait_ready()
        wait_until(partial(_all_back, mesh, faults), 60, "all nodes are online again")
        _wait_for_the_end(mesh, record)
        counts = audit(mesh, stamps, record)
        logs = mesh.tails() if record.problems else ""
    replaced = {
        f"calls answered with {answer}": n for answer, n in sorted(between.replaced.items())
    }
    counts = {**dict(sorted(record.counts.items())), **replaced, **counts}
    counts["seconds"] = round(time.monotonic() - started)
    print(("\r\x1b[K" if sys.stdout.isatty() else "") + "\n".join(
        f"{name:<44}{number:>8}" for name, number in counts.items()))  # fmt: skip
    if record.problems:
        print("\n".join([logs, "VIOLATIONS:", *record.problems[:50]]), file=sys.stderr)
        again = f"make chaos ROUNDS={rounds} SEED={seed} FAULTS={','.join(kinds)}"
        print(f"again with: {again}", file=sys.stderr)
        return 1
    print(f"chaos: nothing lost, nothing twice (seed {seed})")
    return 0


def _all_back(mesh: DevMesh, faults: Faults) -> bool:
    """Whether every node is online; an agent that another one replaced has ended meanwhile."""
    faults.revive()
    try:
        return {view.node_id for view in mesh.admin.nodes()} >= set(mesh.nodes)
    except RaeError:
        return False


def _wait_for_the_end(mesh: DevMesh, record: Record) -> None:
    """Every acknowledged task ends; what does not is for the audit to tell."""
    rae, end = mesh.admin, time.monotonic() + END_TIMEOUT_S
    for task_id in sorted(record.submitted):
        try:
            rae.wait(task_id, max(0.0, end - time.monotonic()))
        except (TimeoutError, RemoteError):
            continue


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Disturb everything at random, then audit.")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, printed")
    parser.add_argument("--faults", default=",".join(KINDS), help="default: %(default)s")
    args = parser.parse_args(argv)
    kinds = tuple(args.faults.split(","))
    if unknown := set(kinds) - set(KINDS):
        parser.error(f"--faults {','.join(sorted(unknown))}: known are {', '.join(KINDS)}")
    exit_on_signals()
    seed = random.SystemRandom().randrange(10**9) if args.seed is None else args.seed
    try:
        if "disk" in kinds:
            enter_namespace()
        return run(args.rounds, seed, kinds)
    except KeyboardInterrupt:
        return 130
    except MeshError as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
