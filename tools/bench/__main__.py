"""`make bench`: measures, and writes docs/benchmarks.md. Every number comes from this run."""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from datetime import datetime, timezone
from importlib.metadata import version
from pathlib import Path

import psutil

from rae_control.queue.dev_redis import find_server
from tools.bench.parts import PARTS
from tools.bench.peers import Peers
from tools.bench.report import Kept, Part, Result, Run, measure
from tools.processes import exit_on_signals

KEPT = Path("build")
MISSED = "## Goals missed in this run"


def machine() -> list[str]:
    """Where and with what."""
    lines = Path("/proc/cpuinfo").read_text().splitlines()
    models = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    memory = psutil.virtual_memory().total / 2**30
    kinds = {disk.fstype for disk in psutil.disk_partitions(all=True) if disk.mountpoint == "/"}
    server = subprocess.check_output([find_server(), "--version"], text=True).strip()
    names = ("rq", "gunicorn", "gevent", "apsw", "flask", "pydantic", "requests")
    return [
        f"- {os.cpu_count()} cores ({(*models, platform.machine())[0]}), {memory:.0f} GiB, "
        f"{'/'.join(sorted(kinds))}, Linux {platform.release()}",
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


def main(argv: Sequence[str] | None = None, parts: Mapping[str, Part] = PARTS) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Measure, and write docs/benchmarks.md.")
    parser.add_argument("--only", default=",".join(parts), help="default: %(default)s")
    parser.add_argument("--quick", action="store_true", help="a look: small numbers, no file")
    parser.add_argument(
        "--resume", action="store_true", help="measure only what a run that failed lacks"
    )
    parser.add_argument("--peers", type=Path, help="the peers' Python, for parts beside them")
    parser.add_argument(
        "--rows", type=_numbers, default=Run.rows, metavar="N,…",
        help="tasks in the ledgers of the part `grows`",
    )  # fmt: skip
    parser.add_argument("--write", type=Path, help="where the report goes")
    args = parser.parse_args(argv)
    wanted = args.only.split(",")
    if unknown := set(wanted) - set(parts):
        parser.error(f"--only {','.join(unknown)}: known are {', '.join(parts)}")
    exit_on_signals()
    peers = Peers(args.peers and args.peers.absolute())
    where = machine()
    if args.peers:
        where += ["", f"- peers: {peers.versions()}; their Redis with `appendfsync always`, Ray"
                  " without a disk"]  # fmt: skip
    name = ["bench", *["quick"] * args.quick, *([] if wanted == list(parts) else wanted)]
    kept = Kept(KEPT / f"{'-'.join(name)}.json", "\n".join(where))
    if args.resume:
        kept.load()
    else:
        kept.clear()
    old = [name for name in wanted if name in kept.results]
    if old:
        print(f"kept from an earlier run in {kept.file}: {', '.join(old)}")
    print("\n".join(where), flush=True)
    run = Run(peers, args.quick, args.rows)
    try:
        failed = measure(run, wanted, parts, kept, time.monotonic)
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
