"""`make chaos`: SIGKILL at random moments to everything, under load, and an audit afterwards.

Four submitters and four agents work, with a fifth node that delivers twice and too late, while
gunicorn's master and worker, Redis and agents are killed. Then nothing that was answered 2xx may be
missing, and nothing may have happened twice. Exit code 1 on any violation.
"""

from __future__ import annotations

import argparse
import random
import sys
import threading
import time
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from rae_protocol import models
from rae_protocol.client import RaeClient, uuid7
from rae_protocol.errors import RaeError, RemoteError
from rae_protocol.names import TaskState
from rae_protocol.node_client import NodeClient
from rae_protocol.transport import Backoff
from tools.chaos_audit import Record, audit
from tools.devmesh import DevMesh, MeshError, Node, exit_on_signals, install_stamp, wait_until

VICTIMS = ("gunicorn", "worker", "redis", "agent", "agent")
OUTSTANDING = 12
END_TIMEOUT_S = 120.0


def submitter(
    client: RaeClient, stamps: Path, seed: int, record: Record, stop: threading.Event
) -> None:
    """Submit a few tasks at a time, some of them in chains; never too many at once."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    mine: list[str] = []
    while not stop.is_set():
        ids = [uuid7() for _ in range(rng.randint(1, 3))]
        chained = rng.random() < 0.3
        bodies: list[dict[str, Any]] = [
            {
                "task_id": task_id,
                "kind": "python",
                "params": {
                    "task": "stamp",
                    "params": {
                        "stamps": str(stamps),
                        "seconds": round(rng.uniform(0.02, 1.5), 2),
                        "fails": int(rng.random() < 0.2),
                    },
                },
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


def latecomer(mesh: DevMesh, seed: int, record: Record, stop: threading.Event) -> None:
    """A node that never sends a heartbeat: half of its results come twice, half after the lease."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    enrolled = mesh.admin.enrol("late")
    client = NodeClient(
        mesh.url, "late", enrolled.enrolment_secret, public_keys=enrolled.control_public_keys,
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
    mesh: DevMesh, rounds: int, rng: random.Random, record: Record, stop: threading.Event
) -> None:
    """Kill something, wait a moment, again; agents come back after a while."""
    returns: list[tuple[float, Node]] = []
    for number in range(rounds):
        until = time.monotonic() + rng.uniform(0.2, 2.5)
        while not stop.is_set() and (left := until - time.monotonic()) > 0:
            stop.wait(min(left, 0.1))
            for due, node in list(returns):
                if due <= time.monotonic():
                    node.start()
                    returns.remove((due, node))
        while not _kill_one(mesh, rng, returns, record) and not stop.wait(0.05):
            pass
        if sys.stdout.isatty():
            print(f"\r\x1b[Kround {number + 1} of {rounds}", end="", flush=True)
    for _, node in returns:
        node.start()


def _kill_one(
    mesh: DevMesh, rng: random.Random, returns: list[tuple[float, Node]], record: Record
) -> bool:
    """False when the chosen one was dead already."""
    victim = rng.choice(VICTIMS)
    if victim != "agent":
        killed = mesh.kill(victim)
    else:
        node = rng.choice(list(mesh.nodes.values()))
        killed = node.running
        if killed:
            node.kill()
            returns.append((time.monotonic() + rng.uniform(0.0, 4.0), node))
    if killed:
        record.count(f"{victim} killed")
    return killed


def run(rounds: int, seed: int) -> int:
    """One campaign; returns the exit code."""
    rng = random.Random(seed)  # noqa: S311 - reproducible, not secret
    record, stop = Record(), threading.Event()
    print(f"chaos: {rounds} rounds, seed {seed}", flush=True)
    started = time.monotonic()
    with DevMesh(()) as mesh:
        stamps = mesh.data / "stamps"
        tasks = install_stamp(mesh.data)
        names = [f"n{number}" for number in range(1, 5)]
        for name in names:
            mesh.add_node(name, {"task_paths": [str(tasks)], "max_concurrent_cpu": 2})
        for name in names:
            mesh.wait_node(name, "online")
        clients = [
            RaeClient(mesh.url, mesh.admin.add_token(f"s{number}", "submit").token)
            for number in range(4)
        ]
        with ThreadPoolExecutor(5) as pool:
            workers = [
                pool.submit(submitter, client, stamps, rng.randrange(2**32), record, stop)
                for client in clients
            ]
            workers.append(pool.submit(latecomer, mesh, rng.randrange(2**32), record, stop))
            try:
                disturb(mesh, rounds, rng, record, stop)
                # Each restart of control grants leases more time; in the calm one does run out.
                wait_until(lambda: record.refused, 60, "a late result got 409")
            finally:
                stop.set()
        for worker in workers:
            worker.result()
        mesh.wait_ready()
        for name in names:
            mesh.wait_node(name, "online")
        _wait_for_the_end(mesh, record)
        counts = audit(mesh, stamps, record)
        logs = mesh.tails() if record.problems else ""
    counts = {**dict(sorted(record.counts.items())), **counts}
    counts["seconds"] = round(time.monotonic() - started)
    print(("\r\x1b[K" if sys.stdout.isatty() else "") + "\n".join(
        f"{name:<44}{number:>8}" for name, number in counts.items()))  # fmt: skip
    if record.problems:
        print("\n".join([logs, "VIOLATIONS:", *record.problems[:50]]), file=sys.stderr)
        print(f"again with: make chaos ROUNDS={rounds} SEED={seed}", file=sys.stderr)
        return 1
    print(f"chaos: nothing lost, nothing twice (seed {seed})")
    return 0


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
    parser = argparse.ArgumentParser(description="Kill everything at random moments, then audit.")
    parser.add_argument("--rounds", type=int, default=200)
    parser.add_argument("--seed", type=int, default=None, help="default: a new one, printed")
    args = parser.parse_args(argv)
    exit_on_signals()
    seed = random.SystemRandom().randrange(10**9) if args.seed is None else args.seed
    try:
        return run(args.rounds, seed)
    except KeyboardInterrupt:
        return 130
    except MeshError as error:
        print(f"chaos: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
