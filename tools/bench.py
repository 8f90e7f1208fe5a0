"""`make bench`: how fast, how light, beside whom; one run on this machine, into docs/benchmarks.md.

Every number comes from this run. The peers (rq, Celery, Ray) run in an environment of their own,
their Redis syncing every write, as control's ledger does; Ray keeps nothing on disk.
"""

from __future__ import annotations

import argparse
import json
import os
import platform
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime, timezone
from functools import partial
from importlib.metadata import version
from pathlib import Path
from typing import Any

from rae_control.queue.dev_redis import find_server
from tools import bench_detectors, bench_grows
from tools import bench_ours as ours
from tools.bench_parts import Kept, Report, Result, measure
from tools.devmesh import MeshError, exit_on_signals, wait_until

PEERS = ("rq Worker", "rq SimpleWorker", "Celery", "Ray")
KEPT = Path("build")
MISSED = "## Goals missed in this run"


def quantile(values: Sequence[float], share: float) -> float:
    """The value that this share does not exceed."""
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


def spread(values: Sequence[float]) -> str:
    """Median, 99 % and maximum, in ms."""
    return (
        f"p50 {statistics.median(values):.1f} ms, p99 {quantile(values, 0.99):.1f}, "
        f"max {max(values):.1f}"
    )


class Peers:
    """The environment of the peers and their Redis, measured once each."""

    def __init__(self, python: Path | None) -> None:
        self._python = python
        self._known: dict[str, dict[str, Any]] = {}

    @property
    def python(self) -> Path:
        """Their Python. Raises MeshError where there is none."""
        if self._python is None:
            raise MeshError("--peers is missing: run make bench without PART")
        return self._python

    def versions(self) -> str:
        """What is compared with."""
        code = "import importlib.metadata as m\n"
        code += "print(', '.join(f'{n} {m.version(n)}' for n in ('rq', 'celery', 'ray')))"
        return subprocess.check_output([self.python, "-c", code], text=True).strip()

    def measure(self, name: str) -> dict[str, Any]:
        """The peer's numbers. Raises MeshError."""
        if name not in self._known:
            self._known[name] = self._run(name)
        return self._known[name]

    def _run(self, name: str) -> dict[str, Any]:
        folder = Path(tempfile.mkdtemp(prefix="rae-bench-"))
        socket = folder / "redis.sock"
        redis = subprocess.Popen(
            [find_server(), "--port", "0", "--unixsocket", str(socket), "--dir", str(folder),
             "--appendonly", "yes", "--appendfsync", "always", "--save", ""],
            stdout=subprocess.DEVNULL,
        )  # fmt: skip
        try:
            wait_until(socket.exists, 10, "the peers' Redis listens")
            done = subprocess.run(
                [str(self.python), str(Path(__file__).with_name("bench_peer.py")), name,
                 f"unix://{socket}"],
                capture_output=True, text=True, timeout=300, check=False,
            )  # fmt: skip
            for line in done.stdout.splitlines():
                if line.startswith("RESULT "):
                    found: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
                    return found
            raise MeshError(f"{name} gave no result:\n{done.stderr[-1500:]}")
        finally:
            redis.terminate()
            redis.wait(10)
            shutil.rmtree(folder, ignore_errors=True)


def latency(report: Report, *, peers: Peers, quick: bool) -> None:
    """Submit to running on an idle node, beside the peers."""
    found = ours.latency(20 if quick else 200)
    p50 = statistics.median(found["running"])
    report.section(
        "From submit to running, one idle worker, 200 samples", "", "p50", "p99", "ours is"
    )
    for name, key in (
        ("**ours**: control took the node's ack", "running"),
        ("ours: the process writes its first output", "begins"),
        ("ours: the submitter has the result", "done"),
    ):
        values = found[key]
        report.row(
            name, f"{statistics.median(values):.1f} ms", f"{quantile(values, 0.99):.1f} ms", ""
        )
    ratio = {}
    for name in PEERS:
        start = peers.measure(name)["start_ms"]
        ratio[name] = p50 / statistics.median(start)
        report.row(
            f"{name}: the job's first line", f"{statistics.median(start):.1f} ms",
            f"{quantile(start, 0.99):.1f} ms", f"{ratio[name]:.2f} x",
        )  # fmt: skip
    report.section("Goals of latency", "", "measured", "goal", "met")
    worker, simple = ratio["rq Worker"], ratio["rq SimpleWorker"]
    report.goal("p50 beside rq Worker", f"{worker:.2f} x", "≤ 1 x", met=worker <= 1)
    report.goal("p50 beside rq SimpleWorker", f"{simple:.2f} x", "≤ 4 x", met=simple <= 4)
    p99 = quantile(found["running"], 0.99)
    report.goal("p99", f"{p99:.0f} ms", "≤ 500 ms", met=p99 <= 500)


def lifecycles(report: Report, *, peers: Peers, quick: bool) -> None:
    """Durable lifecycles a second."""
    number = 400 if quick else 3000
    singly, batched = ours.lifecycles(number, 1), ours.lifecycles(number, 100)
    report.section(
        "Durable lifecycles: submit, claim, ack, result", "", "per second", "CPU of control",
        "of Redis", "of the load generator",
    )  # fmt: skip
    for name, found in (("submitted singly", singly), ("submitted by the hundred", batched)):
        report.row(
            name, f"{found['per_s']:.0f}", *(f"{found[key]:.2f} ms each" for key in
            ("control_ms", "redis_ms", "load_ms")),
        )  # fmt: skip
    real = ours.real_tasks(100 if quick else 400)
    report.section("The same with something that runs", "", "per second", "ours is")
    report.row("**ours**: `true` as a supervised process, 2 slots", f"{real:.0f}", "")
    for name in PEERS:
        found = peers.measure(name)
        per_s = max(found["per_s"], found.get("batched_per_s", 0))
        mode = "a process for each job" if name == "rq Worker" else "in a process that stays"
        report.row(f"{name}: an empty function, {mode}", f"{per_s:.0f}", f"{real / per_s:.2f} x")
    report.section("Goals of throughput", "", "measured", "goal", "met")
    report.goal(
        "singly", f"{singly['per_s']:.0f} /s", "≥ 150 /s", met=singly["per_s"] >= 150
    )  # fmt: skip
    report.goal(
        "by the hundred", f"{batched['per_s']:.0f} /s", "≥ 300 /s", met=batched["per_s"] >= 300
    )  # fmt: skip


def claims(report: Report, *, peers: Peers, quick: bool) -> None:
    """What a claim costs as the queue grows."""
    sizes = [1000, 3000, 10_000] if quick else [1000, 10_000, 100_000]
    found = ours.claims(sizes, 100 if quick else 300)
    report.section("A poll that gets a task, ten lanes", "queued", "p50", "p99")
    for size, values in found.items():
        report.row(
            f"{size:,}", f"{statistics.median(values):.2f} ms", f"{quantile(values, 0.99):.2f} ms"
        )
    growth = statistics.median(found[sizes[-1]]) / statistics.median(found[sizes[0]])
    report.section("Goals of claims", "", "measured", "goal", "met")
    report.goal(f"{sizes[0]:,} → {sizes[-1]:,}", f"{growth:.2f} x", "≤ 1.3 x", met=growth <= 1.3)


def moving(report: Report, *, peers: Peers, quick: bool) -> None:
    """Polls while artifacts arrive."""
    mib, number = 50, 2 if quick else 10
    found = ours.moving(mib, number)
    report.section(
        f"Empty polls while two nodes deliver {mib * number} MB of artifacts", "", "latency"
    )
    report.row("quiet", spread(found["quiet"]))
    report.row(f"{mib * number} MB in {found['seconds'][0]:.1f} s", spread(found["busy"]))


def rest(report: Report, *, peers: Peers, quick: bool) -> None:
    """What idleness costs."""
    seconds, polls = (20.0, 200) if quick else (300.0, 2000)
    worker = [str(peers.python), "-m", "rq.cli", "worker", "--quiet"]
    found = ours.rest(seconds, polls, worker)
    report.section(f"At rest, over {seconds:.0f} s", "", "PSS", "of a core")
    report.row(
        f"**our agent**, all {found['agent_processes']:.0f} processes of it",
        f"{found['agent_pss_mb']:.0f} MB", f"{found['agent_cpu_percent']:.3f} %",
    )  # fmt: skip
    report.row("rq worker", f"{found['rq_pss_mb']:.0f} MB", f"{found['rq_cpu_percent']:.3f} %")
    report.row(
        f"control with {polls:,} open long polls and a heartbeat of each every 30 s",
        f"{found['polls_pss_mb']:.0f} MB", f"{found['polls_cpu_percent']:.1f} %",
    )  # fmt: skip
    report.text(
        f"A task for one of the {polls:,}: {found['wake_ms']:.1f} ms (median of 50) from submit to "
        f"the node that waits for it, {found['wake_max_ms']:.1f} ms at most."
    )
    report.section("Goals at rest", "", "measured", "goal", "met")
    pss, cpu = found["agent_pss_mb"], found["agent_cpu_percent"]
    report.goal("agent, memory", f"{pss:.0f} MB", "≤ 64 MB", met=pss <= 64)
    report.goal("agent, CPU", f"{cpu:.3f} %", "≤ 0.3 %", met=cpu <= 0.3)
    held = found["polls_pss_mb"]
    report.goal(f"{polls:,} open polls", f"{held:.0f} MB", "≤ 200 MB", met=held <= 200)


def box(report: Report, *, peers: Peers, quick: bool) -> None:
    """The cost of a sandbox, and the time to kill everything in it."""
    samples, kills = (20, 3) if quick else (200, 40)
    program = [sys.executable, "-m", "tools.bench_box", str(samples), str(kills)]
    said = subprocess.check_output(
        [sys.executable, "-m", "tools.guest", *program], text=True, timeout=600
    )
    found = json.loads(said)
    plain, boxed = (statistics.median(found[name]) for name in ("plain", "boxed"))
    report.section(f"From start to a program's first output, {samples} samples", "", "p50", "p99")
    for name, label in (("plain", "without a sandbox"), ("boxed", "in a sandbox")):
        p50, p99 = statistics.median(found[name]), quantile(found[name], 0.99)
        report.row(label, f"{p50:.1f} ms", f"{p99:.1f} ms")
    report.section("Goals of the sandbox", "", "measured", "goal", "met")
    cost, gone = boxed - plain, quantile(found["kills"], 0.95)
    report.goal("a sandbox's cost at the start, p50", f"{cost:.1f} ms", "≤ 40 ms", met=cost <= 40)
    what = f"kill to the end of 500 processes in 3 sessions, p95 of {kills}"
    report.goal(what, f"{gone:.1f} ms", "≤ 100 ms", met=gone <= 100)


def detectors(report: Report, *, peers: Peers, quick: bool) -> None:
    """What it costs to know whether the owner is there."""
    rest_s, typing_s = (30.0, 20.0) if quick else (300.0, 60.0)
    found = bench_detectors.detectors(rest_s, typing_s)
    report.section("Goals of the detectors", "", "measured", "goal", "met")
    cpu, wakes = found["rest_cpu_percent"], found["rest_wakes_per_s"]
    what = f"all sources and the input detector at rest, {rest_s:.0f} s"
    report.goal(f"{what}: CPU", f"{cpu:.3f} %", "≤ 0.3 %", met=cpu <= 0.3)
    report.goal(f"{what}: wake-ups", f"{wakes:.2f} /s", "≤ 1 /s", met=wakes <= 1)
    pss, rss = found["input_pss_mb"], found["input_rss_mb"]
    memory = f"{pss:.1f} MB PSS, {rss:.1f} MB RSS"
    report.goal("the input detector, memory", memory, "≤ 12 MB PSS", met=pss <= 12)
    cpu = found["typing_cpu_percent"]
    what = f"the input detector under 1,000 events a second for {typing_s:.0f} s, CPU"
    report.goal(what, f"{cpu:.3f} %", "≤ 0.5 %", met=cpu <= 0.5)


def grows(report: Report, *, peers: Peers, quick: bool, rows: Sequence[int]) -> None:
    """What others wait as the ledger grows."""
    bench_grows.grows(report, [1000, 10_000] if quick else rows)


PARTS: Mapping[str, Callable[..., None]] = {
    "latency": latency, "lifecycles": lifecycles, "claims": claims, "moving": moving,
    "box": box, "rest": rest, "detectors": detectors, "grows": grows,
}  # fmt: skip


def machine() -> list[str]:
    """Where and with what."""
    model = next(
        (line.split(":", 1)[1].strip() for line in Path("/proc/cpuinfo").read_text().splitlines()
         if line.startswith("model name")), platform.machine(),
    )  # fmt: skip
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    kinds = {
        words[2] for words in map(str.split, Path("/proc/mounts").read_text().splitlines())
        if words[1] == "/"
    }  # fmt: skip
    server = subprocess.check_output([find_server(), "--version"], text=True).strip()
    names = ("rq", "gunicorn", "gevent", "apsw", "flask", "pydantic", "requests")
    return [
        f"- {os.cpu_count()} cores ({model}), {memory:.0f} GiB, {'/'.join(sorted(kinds))}, "
        f"Linux {platform.release()}",
        f"- Python {platform.python_version()}, "
        + ", ".join(f"{name} {version(name)}" for name in names),
        f"- {server}",
    ]


def page(where: Sequence[str], results: Sequence[Result], old: Sequence[str]) -> str:
    """The report as a page."""
    runs = f"these are from a run that stopped before its end: {', '.join(old)}; every other"
    lines = [
        "# Benchmarks", "",
        f"Written by `make bench`; {runs if old else 'every'} number is from one run.", "", "",
        f"- {datetime.now(timezone.utc):%Y-%m-%d %H:%M} UTC", *where,
    ]  # fmt: skip
    lines += [line for result in results for line in result.lines]
    missed = [f"- {line}" for result in results for line in result.missed]
    lines += ["", MISSED, "", *(missed or ["None."])]
    lines += ["", f"The parts took {sum(result.seconds for result in results):.0f} s."]
    return "\n".join(lines) + "\n"


def _numbers(text: str) -> list[int]:
    return [int(word) for word in text.split(",")]


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Measure, and write docs/benchmarks.md.")
    parser.add_argument("--only", default=",".join(PARTS), help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a look: small numbers, no file")
    parser.add_argument(
        "--resume", action="store_true", help="measure only what a run that failed lacks"
    )
    parser.add_argument("--peers", type=Path, help="the peers' Python, for parts beside them")
    parser.add_argument(
        "--rows", type=_numbers, default=bench_grows.SIZES, metavar="N,…",
        help="tasks in the ledgers of the part `grows`",
    )  # fmt: skip
    parser.add_argument("--write", type=Path, help="where the report goes")
    args = parser.parse_args(argv)
    wanted = args.only.split(",")
    if unknown := set(wanted) - set(PARTS):
        parser.error(f"--only {','.join(unknown)}: known are {', '.join(PARTS)}")
    exit_on_signals()
    peers = Peers(args.peers and args.peers.absolute())
    where = machine()
    if args.peers:
        where += ["", f"- peers: {peers.versions()}; their Redis with `appendfsync always`, Ray"
                  " without a disk"]  # fmt: skip
    name = ["bench", *["quick"] * args.quick, *([] if wanted == list(PARTS) else wanted)]
    kept = Kept(KEPT / f"{'-'.join(name)}.json", "\n".join(where))
    if args.resume:
        kept.load()
    else:
        kept.clear()
    old = [name for name in wanted if name in kept.results]
    if old:
        print(f"kept from an earlier run in {kept.file}: {', '.join(old)}")
    print("\n".join(where), flush=True)
    parts = {name: partial(part, peers=peers, quick=args.quick) for name, part in PARTS.items()}
    parts["grows"] = partial(parts["grows"], rows=args.rows)
    try:
        failed = measure(wanted, parts, kept, time.monotonic)
    except KeyboardInterrupt:
        print(f"\nbench: stopped. {kept.advice()}", file=sys.stderr)
        return 130
    if failed:
        print("\n".join(["", *failed, kept.advice()]), file=sys.stderr)
        return 1
    text = page(where, [kept.results[name] for name in wanted], old)
    print(f"\n{text[text.index(MISSED) :]}")
    if args.write and not args.quick:
        args.write.write_text(text, encoding="utf-8")
        print(f"written to {args.write}")
    kept.clear()
    return 0


if __name__ == "__main__":
    sys.exit(main())
