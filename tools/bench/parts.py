"""The parts of `make bench`: what each measures on our side, beside the peers."""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping
from datetime import timezone

import psutil

from tools.bench import detectors as guard
from tools.bench import measure as m
from tools.bench.grows import grows
from tools.bench.load import TRUE
from tools.bench.peers import NAMES
from tools.bench.report import Part, Report, Run
from tools.devmesh import DevMesh, wait_until
from tools.processes import MeshError

DATE = "- path: /usr/bin/date\n  args: [['\\+%s\\.%N']]\n  max_runtime_s: 10\n"


def latency(report: Report, run: Run) -> None:
    """Submit to running on an idle node, one task at a time, beside the peers."""
    running, begins, done = [], [], []
    with DevMesh((), control=m.CONTROL) as mesh:
        allowed = mesh.data / "nodes" / "n1" / "agent" / "allowlist.d"
        allowed.mkdir(parents=True)
        (allowed / "bench.yaml").write_text(DATE, encoding="utf-8")
        mesh.add_node("n1", m.NODE)
        mesh.wait_node("n1", "online")
        rae = mesh.rae
        body = {"kind": "cli", "params": {"command": "date", "args": ["+%s.%N"]}}
        for number in range(25 if run.quick else 205):
            began = time.time()
            view = rae.wait(rae.submit([body])[0].task_id, 30)
            ended = time.time()
            if number < 5:
                continue  # the first few warm up
            ran = view.history[0].acked_at
            if ran is None or view.state.value != "succeeded":
                raise MeshError(f"{view.task_id} is {view.state.value}: {view.error}")
            acked = ran.replace(tzinfo=ran.tzinfo or timezone.utc).timestamp()
            running.append(1000 * (acked - began))
            # What the task's own clock says first.
            begins.append(1000 * (float(view.result["stdout"]) - began))
            done.append(1000 * (ended - began))
            time.sleep(0.02)
    report.section(
        "From submit to running, one idle worker, 200 samples", "", "p50", "p99", "ours is"
    )
    report.row("**ours**: control took the node's ack", *m.in_ms(running), "")
    report.row("ours: the process writes its first output", *m.in_ms(begins), "")
    report.row("ours: the submitter has the result", *m.in_ms(done), "")
    ratio = {}
    for name in NAMES:
        start = run.peers.measure(name)["start_ms"]
        ratio[name] = statistics.median(running) / statistics.median(start)
        report.row(f"{name}: the job's first line", *m.in_ms(start), f"{ratio[name]:.2f} x")
    report.goals("Goals of latency")
    report.goal("p50 beside rq Worker", ratio["rq Worker"], "{:.2f} x", most=1)
    report.goal("p50 beside rq SimpleWorker", ratio["rq SimpleWorker"], "{:.2f} x", most=4)
    report.goal("p99", m.percentile(running, 99), "{:.0f} ms", most=500)


def lifecycles(report: Report, run: Run) -> None:
    """Durable lifecycles a second, and something that runs beside the peers."""
    number = 400 if run.quick else 3000
    report.section(
        "Durable lifecycles: submit, claim, ack, result", "", "per second", "CPU of control",
        "of Redis", "of the load generator",
    )  # fmt: skip
    rates = []
    for name, batch in (("submitted singly", 1), ("submitted by the hundred", 100)):
        with DevMesh((), control=m.CONTROL) as mesh:
            nodes, redis = m.enrol(mesh, 16), [psutil.Process(mesh.pid("redis"))]
            control = m.control_processes(mesh)
            before = m.cpu_s(control), m.cpu_s(redis)
            done = m.load("lifecycles", mesh, nodes, number=number, batch=batch)
            used = (m.cpu_s(control) - before[0], m.cpu_s(redis) - before[1], done["cpu_s"])
        rates.append(number / done["seconds"])
        each = [f"{1000 * seconds / number:.2f} ms each" for seconds in used]
        report.row(name, f"{rates[-1]:.0f}", *each)
    real = real_tasks(100 if run.quick else 400)
    report.section("The same with something that runs", "", "per second", "ours is")
    report.row("**ours**: `true` as a supervised process, 2 slots", f"{real:.0f}", "")
    for name in NAMES:
        found = run.peers.measure(name)
        per_s = max(found["per_s"], found.get("batched_per_s", 0))
        mode = "a process for each job" if name == "rq Worker" else "in a process that stays"
        report.row(f"{name}: an empty function, {mode}", f"{per_s:.0f}", f"{real / per_s:.2f} x")
    report.goals("Goals of throughput")
    report.goal("singly", rates[0], "{:.0f} /s", least=150)
    report.goal("by the hundred", rates[1], "{:.0f} /s", least=300)


def real_tasks(number: int) -> float:
    """Real `true` processes a second through one agent with two slots, submitted in one call."""
    with DevMesh((), control=m.CONTROL) as mesh:
        mesh.add_node("n1", {**m.NODE, "max_concurrent_cpu": 2})
        mesh.wait_node("n1", "online")
        rae = mesh.rae
        rae.wait(rae.submit([TRUE])[0].task_id, 30)
        began = time.monotonic()
        for ref in rae.submit([TRUE] * number):
            rae.wait(ref.task_id, 120)
        return number / (time.monotonic() - began)


def claims(report: Report, run: Run) -> None:
    """What a claim costs as the queue grows."""
    sizes = [1000, 3000, 10_000] if run.quick else [1000, 10_000, 100_000]
    samples, medians, queued = 100 if run.quick else 300, [], 0
    report.section("A poll that gets a task, ten lanes", "queued", "p50", "p99")
    with DevMesh((), control=m.CONTROL) as mesh:
        nodes, rae = m.enrol(mesh, 1), mesh.rae
        for size in sizes:
            while queued < size:
                step = min(1000, size - queued)
                rae.submit([{**TRUE, "priority": k % 10} for k in range(step)])
                queued += step
            wait_until(lambda: m.in_redis(mesh) >= size, 120, "the queue has them all")  # noqa: B023
            found = m.load("claims", mesh, nodes, number=samples)["ms"]
            queued -= samples
            medians.append(statistics.median(found))
            report.row(f"{size:,}", *m.in_ms(found, 2))
    report.goals("Goals of claims")
    report.goal(f"{sizes[0]:,} → {sizes[-1]:,}", medians[-1] / medians[0], "{:.2f} x", most=1.3)


def moving(report: Report, run: Run) -> None:
    """Empty polls, quiet and while artifacts arrive."""
    mib, number = 50, 2 if run.quick else 10
    with DevMesh((), control=m.CONTROL) as mesh:
        nodes = m.enrol(mesh, 3)
        watcher = {"bench0": nodes.pop("bench0")}
        quiet = m.load("polls", mesh, watcher, seconds=10)["ms"]
        body = {**TRUE, "artifacts": [{"name": "bytes", "max_mb": mib}]}
        mesh.rae.submit([{**body, "requirements": {"nodes": list(nodes)}}] * (number + 4))
        with m.generator("polls", mesh, watcher, seconds=10, until_eof=True) as polling:
            seconds = m.load("upload", mesh, nodes, number=number, mib=mib)["seconds"]
            busy = polling.finish()["ms"]
    report.section(
        f"Empty polls while two nodes deliver {mib * number} MB of artifacts", "", "latency"
    )
    for name, values in (("quiet", quiet), (f"{mib * number} MB in {seconds:.1f} s", busy)):
        p50, p99 = m.in_ms(values)
        report.row(name, f"p50 {p50}, p99 {p99.split()[0]}, max {max(values):.1f}")


def box(report: Report, run: Run) -> None:
    """The cost of a sandbox, and the time to kill everything in it."""
    samples, kills = (20, 3) if run.quick else (200, 40)
    program = [sys.executable, "-m", "tools.bench.box", str(samples), str(kills)]
    said = subprocess.check_output(
        [sys.executable, "-m", "tools.guest", *program], text=True, timeout=600
    )
    found = json.loads(said)
    report.section(f"From start to a program's first output, {samples} samples", "", "p50", "p99")
    for name, label in (("plain", "without a sandbox"), ("boxed", "in a sandbox")):
        report.row(label, *m.in_ms(found[name]))
    report.goals("Goals of the sandbox")
    cost = statistics.median(found["boxed"]) - statistics.median(found["plain"])
    report.goal("a sandbox's cost at the start, p50", cost, "{:.1f} ms", most=40)
    what = f"kill to the end of 500 processes in 3 sessions, p95 of {kills}"
    report.goal(what, m.percentile(found["kills"], 95), "{:.1f} ms", most=100)


def rest(report: Report, run: Run) -> None:
    """What idleness costs: of an agent and an rq worker, and of control with open long polls."""
    seconds, polls = (20.0, 200) if run.quick else (300.0, 2000)
    with DevMesh((), control=m.CONTROL) as mesh, DevMesh((), control=m.CONTROL) as busy:
        nodes = m.enrol(busy, polls)
        with m.generator("hold", busy, nodes) as holding:
            if holding.line() != {"ready": polls}:
                raise MeshError("the load generator did not get its polls open")
            mesh.add_node("n1", m.NODE)
            mesh.wait_node("n1", "online")
            words = ["-m", "rq.cli", "worker", "--quiet", "-u", mesh.redis_url, "nothing"]
            peer = subprocess.Popen([run.peers.python, *words])
            try:
                time.sleep(15)  # what everybody does once is not rest
                groups = (m.tree(mesh.nodes["n1"].pid), m.tree(peer.pid), m.control_processes(busy))
                before, began = [m.cpu_s(group) for group in groups], time.monotonic()
                time.sleep(seconds)
                took = time.monotonic() - began
                cpu = [100 * (m.cpu_s(group) - was) / took
                       for group, was in zip(groups, before, strict=True)]  # fmt: skip
                agents = m.tree(mesh.nodes["n1"].pid)
                memory = [m.pss_mb(group) for group in (agents, *groups[1:])]
            finally:
                peer.terminate()
                peer.wait(20)
            wakes = []
            for number in range(50):
                began = time.time()
                where = {"requirements": {"nodes": [f"bench{number * polls // 50}"]}}
                busy.rae.submit([{**TRUE, **where}])
                wakes.append(1000 * (holding.line(30)["at"] - began))
                time.sleep(0.05)
    report.section(f"At rest, over {seconds:.0f} s", "", "PSS", "of a core")
    names = (
        f"**our agent**, all {len(agents)} processes of it", "rq worker",
        f"control with {polls:,} open long polls and a heartbeat of each every 30 s",
    )  # fmt: skip
    for name, held, share, digits in zip(names, memory, cpu, (3, 3, 1), strict=True):
        report.row(name, f"{held:.0f} MB", f"{share:.{digits}f} %")
    report.text(
        f"A task for one of the {polls:,}: {statistics.median(wakes):.1f} ms (median of 50) from "
        f"submit to the node that waits for it, {max(wakes):.1f} ms at most."
    )
    report.goals("Goals at rest")
    report.goal("agent, memory", memory[0], "{:.0f} MB", most=64)
    report.goal("agent, CPU", cpu[0], "{:.3f} %", most=0.3)
    report.goal(f"{polls:,} open polls", memory[2], "{:.0f} MB", most=200)


def detectors(report: Report, run: Run) -> None:
    """What it costs to know whether the owner is there."""
    rest_s, typing_s = (30.0, 20.0) if run.quick else (300.0, 60.0)
    found = guard.detectors(rest_s, typing_s)
    report.goals("Goals of the detectors")
    what = f"all sources and the input detector at rest, {rest_s:.0f} s"
    report.goal(f"{what}: CPU", found["rest_cpu_percent"], "{:.3f} %", most=0.3)
    report.goal(f"{what}: wake-ups", found["rest_wakes_per_s"], "{:.2f} /s", most=1)
    pss, rss = found["input_pss_mb"], found["input_rss_mb"]
    memory = f"{pss:.1f} MB PSS, {rss:.1f} MB RSS"
    report.verdict("the input detector, memory", memory, "≤ 12 MB PSS", met=pss <= 12)
    what = f"the input detector under 1,000 events a second for {typing_s:.0f} s, CPU"
    report.goal(what, found["typing_cpu_percent"], "{:.3f} %", most=0.5)


PARTS: Mapping[str, Part] = {
    "latency": latency, "lifecycles": lifecycles, "claims": claims, "moving": moving, "box": box,
    "rest": rest, "detectors": detectors, "grows": grows,
}  # fmt: skip
