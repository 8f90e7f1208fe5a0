"""The measurements of `make bench` on our side; each returns plain numbers."""

from __future__ import annotations

import json
import os
import select
import statistics
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from datetime import timezone
from pathlib import Path
from typing import Any

from tools.bench_load import TRUE
from tools.devmesh import DevMesh, MeshError, wait_until
from tools.scenarios.outage import CONTRACT

TICKS = os.sysconf("SC_CLK_TCK")
# The contract's periods; only the limits that a generator of load would meet are lifted.
CONTROL: Mapping[str, object] = {
    **CONTRACT, "rate_limit_per_s": 100_000, "rate_limit_burst": 100_000,
}  # fmt: skip
NODE: Mapping[str, object] = {
    "heartbeat_interval_sec": 30, "poll_interval_sec": 45, "max_concurrent_cpu": 1,
}  # fmt: skip
DATE = "- path: /usr/bin/date\n  args: [['\\+%s\\.%N']]\n  max_runtime_s: 10\n"


def tree(root: int) -> list[int]:
    """A process and all its descendants."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            parent = int(stat.rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.name))
    found = [root]
    for pid in found:
        found += children.get(pid, [])
    return found


def cpu_s(pids: list[int]) -> float:
    """Seconds of CPU that live processes, and children that they waited for, have used."""
    total = 0
    for pid in pids:
        text = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
        total += sum(int(word) for word in text.rpartition(")")[2].split()[11:15])
    return total / TICKS


def pss_mb(pids: list[int]) -> float:
    """Memory, with what is shared counted in parts, in MB."""
    total = 0
    for pid in pids:
        for line in Path(f"/proc/{pid}/smaps_rollup").read_text().splitlines():
            if line.startswith("Pss:"):
                total += int(line.split()[1])
    return total / 1024


def control_pids(mesh: DevMesh, *, redis: bool = False) -> list[int]:
    """Processes of control; Redis's apart."""
    without = set() if redis else {mesh.pid("redis")}
    return [pid for pid in tree(mesh.control.pid) if pid not in without]


def load(verb: str, job: Mapping[str, object], timeout_s: float = 600) -> dict[str, Any]:
    """Run a job of the generator. Raises MeshError."""
    done = subprocess.run(
        [sys.executable, "-m", "tools.bench_load", verb], input=json.dumps(job) + "\n",
        capture_output=True, text=True, timeout=timeout_s, check=False,
    )  # fmt: skip
    if done.returncode:
        raise MeshError(f"the load generator failed:\n{done.stderr[-2000:]}")
    answer: dict[str, Any] = json.loads(done.stdout)
    return answer


def enrol(mesh: DevMesh, number: int) -> dict[str, str]:
    """Enrol nodes; returns their secrets."""
    admin = mesh.admin
    return {f"bench{k}": admin.enrol(f"bench{k}").enrolment_secret for k in range(number)}


def job_for(mesh: DevMesh, nodes: dict[str, str], **more: object) -> dict[str, object]:
    """What every job needs."""
    token = mesh.credentials()["submit_token"]
    return {"url": mesh.url, "token": token, "nodes": nodes, **more}


def latency(samples: int) -> dict[str, list[float]]:
    """One idle node, one task at a time: milliseconds from the call of submit on.

    `running` is when control took the node's ack, `begins` what the task's own clock says first.
    """
    with DevMesh((), control=CONTROL) as mesh:
        allowed = mesh.data / "nodes" / "n1" / "agent" / "allowlist.d"
        allowed.mkdir(parents=True)
        (allowed / "bench.yaml").write_text(DATE, encoding="utf-8")
        mesh.add_node("n1", NODE)
        mesh.wait_node("n1", "online")
        rae = mesh.rae
        body = {"kind": "cli", "params": {"command": "date", "args": ["+%s.%N"]}}
        found: dict[str, list[float]] = {"running": [], "begins": [], "done": []}
        for number in range(samples + 5):
            began = time.time()
            ref = rae.submit([body])[0]
            view = rae.wait(ref.task_id, 30)
            ended = time.time()
            if number < 5:
                continue  # the first few warm up
            ran = view.history[0].acked_at
            if ran is None or view.state.value != "succeeded":
                raise MeshError(f"{ref.task_id} is {view.state.value}: {view.error}")
            acked = ran.replace(tzinfo=ran.tzinfo or timezone.utc).timestamp()
            found["running"].append(1000 * (acked - began))
            found["begins"].append(1000 * (float(view.result["stdout"]) - began))
            found["done"].append(1000 * (ended - began))
            time.sleep(0.02)
        return found


def real_tasks(number: int) -> float:
    """Real `true` processes a second through one agent with two slots, submitted in one call."""
    with DevMesh((), control=CONTROL) as mesh:
        mesh.add_node("n1", {**NODE, "max_concurrent_cpu": 2})
        mesh.wait_node("n1", "online")
        rae = mesh.rae
        rae.wait(rae.submit([TRUE])[0].task_id, 30)
        began = time.monotonic()
        ids = [ref.task_id for ref in rae.submit([TRUE] * number)]
        for task_id in ids:
            rae.wait(task_id, 120)
        return number / (time.monotonic() - began)


def lifecycles(number: int, batch: int, nodes: int = 16) -> dict[str, float]:
    """Durable submit, claim, ack, result: `per_s`, and CPU seconds of control, Redis and load."""
    with DevMesh((), control=CONTROL) as mesh:
        names = enrol(mesh, nodes)
        pids, redis = control_pids(mesh), [mesh.pid("redis")]
        before = cpu_s(pids), cpu_s(redis)
        done = load("lifecycles", job_for(mesh, names, number=number, batch=batch))
        return {
            "per_s": number / done["seconds"],
            "control_ms": 1000 * (cpu_s(pids) - before[0]) / number,
            "redis_ms": 1000 * (cpu_s(redis) - before[1]) / number,
            "load_ms": 1000 * done["cpu_s"] / number,
        }


def claims(sizes: list[int], samples: int) -> dict[int, list[float]]:
    """Milliseconds of a poll that gets a task, with so many queued in ten lanes."""
    found = {}
    with DevMesh((), control=CONTROL) as mesh:
        nodes, rae, queued = enrol(mesh, 1), mesh.rae, 0
        for size in sizes:
            while queued < size:
                step = min(1000, size - queued)
                rae.submit([{**TRUE, "priority": k % 10} for k in range(step)])
                queued += step
            wait_until(lambda: in_redis(mesh) >= size, 120, "the queue has them all")  # noqa: B023
            found[size] = load("claims", job_for(mesh, nodes, number=samples))["ms"]
            queued -= samples
    return found


def in_redis(mesh: DevMesh) -> int:
    """How many tasks the queue shows."""
    from redis import Redis  # noqa: PLC0415 - for this look only

    redis = Redis.from_url(mesh.redis_url)
    return sum(int(redis.llen(key)) for key in redis.scan_iter("rq:queue:*"))


@contextmanager
def held_polls(number: int) -> Iterator[tuple[DevMesh, Any]]:
    """Control with so many open long polls, and the process that holds them."""
    with DevMesh((), control=CONTROL) as mesh:
        nodes = enrol(mesh, number)
        holder = subprocess.Popen(
            [sys.executable, "-m", "tools.bench_load", "hold"], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        try:
            if holder.stdin is None or holder.stdout is None:
                raise MeshError("the load generator has no pipes")
            holder.stdin.write(json.dumps(job_for(mesh, nodes)) + "\n")
            holder.stdin.flush()
            if json.loads(holder.stdout.readline() or "{}") != {"ready": number}:
                raise MeshError("the load generator did not get its polls open")
            yield mesh, holder.stdout
        finally:
            holder.kill()
            holder.wait()


def rest(seconds: float, polls: int, rq_worker: list[str]) -> dict[str, float]:
    """An idle agent and an idle rq worker for a while, and control with open long polls."""
    with DevMesh((), control=CONTROL) as mesh, held_polls(polls) as (busy, wakes):
        mesh.add_node("n1", NODE)
        mesh.wait_node("n1", "online")
        peer = subprocess.Popen([*rq_worker, "-u", mesh.redis_url, "nothing"])
        try:
            time.sleep(15)  # what everybody does once is not rest
            agents, peers = tree(mesh.nodes["n1"].pid), tree(peer.pid)
            control = control_pids(busy)
            before = cpu_s(agents), cpu_s(peers), cpu_s(control)
            began = time.monotonic()
            time.sleep(seconds)
            took = time.monotonic() - began
            agents = tree(mesh.nodes["n1"].pid)
            found = {
                "agent_pss_mb": pss_mb(agents),
                "agent_cpu_percent": 100 * (cpu_s(agents) - before[0]) / took,
                "agent_processes": float(len(agents)),
                "rq_pss_mb": pss_mb(peers),
                "rq_cpu_percent": 100 * (cpu_s(peers) - before[1]) / took,
                "polls_pss_mb": pss_mb(control),
                "polls_cpu_percent": 100 * (cpu_s(control) - before[2]) / took,
            }
        finally:
            peer.terminate()
            peer.wait(20)
        rae, taken = busy.rae, []
        for number in range(50):
            began = time.time()
            where = {"requirements": {"nodes": [f"bench{number * polls // 50}"]}}
            rae.submit([{**TRUE, **where}])
            if not select.select([wakes], [], [], 30)[0]:
                raise MeshError("a task for one of the open polls was not taken in 30 s")
            taken.append(1000 * (json.loads(wakes.readline())["at"] - began))
            time.sleep(0.05)
        return {**found, "wake_ms": statistics.median(taken), "wake_max_ms": max(taken)}


def moving(mib: int, number: int) -> dict[str, list[float]]:
    """Milliseconds of empty polls, quiet and while artifacts of so many MiB arrive."""
    with DevMesh((), control=CONTROL) as mesh:
        nodes = enrol(mesh, 3)
        watcher = {"bench0": nodes.pop("bench0")}
        job = job_for(mesh, watcher, seconds=10)
        quiet = load("polls", job)["ms"]
        body = {**TRUE, "artifacts": [{"name": "bytes", "max_mb": mib}]}
        mesh.rae.submit([{**body, "requirements": {"nodes": list(nodes)}}] * (number + 4))
        busy = subprocess.Popen(
            [sys.executable, "-m", "tools.bench_load", "polls"], stdin=subprocess.PIPE,
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        if busy.stdin is None or busy.stdout is None:
            raise MeshError("the load generator has no pipes")
        done: dict[str, Any] = {}
        busy.stdin.write(json.dumps({**job, "until_eof": True}) + "\n")
        busy.stdin.flush()
        try:
            done = load("upload", job_for(mesh, nodes, number=number, mib=mib))
        finally:
            busy.stdin.close()
            answer = busy.stdout.readline()
            busy.wait(20)
        return {"quiet": quiet, "busy": json.loads(answer)["ms"], "seconds": [done["seconds"]]}
