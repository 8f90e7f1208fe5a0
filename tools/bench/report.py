"""Runs the parts of a benchmark one after another and keeps each one's results at once.

A part that fails costs only itself: the parts after it still run, and a later run with `resume`
measures only what is missing.
"""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rae_protocol.errors import RaeError
from tools.bench.peers import Peers
from tools.processes import MeshError

# What a part that cannot be measured raises; its programs, files and answers are at fault.
_FAILURES = (MeshError, RaeError, subprocess.SubprocessError, OSError, ValueError)


class Report:
    """Rows as they come, to the terminal and for the file."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.missed: list[str] = []

    def section(self, title: str, *columns: str) -> None:
        """A heading and a table's head."""
        self.say("", f"## {title}", "", f"| {' | '.join(columns)} |", "|---" * len(columns) + "|")

    def row(self, *cells: str) -> None:
        """A line of the table."""
        self.say(f"| {' | '.join(cells)} |")

    def goals(self, title: str) -> None:
        """The head of a table of goals."""
        self.section(title, "", "measured", "goal", "met")

    def goal(
        self, what: str, value: float, form: str, *, most: float | None = None,
        least: float = 0.0,
    ) -> None:  # fmt: skip
        """A value with its unit, that is held to DESIGN's number."""
        met = value >= least if most is None else value <= most
        unit = form.rpartition("}")[2]
        wanted = f"≥ {least:g}{unit}" if most is None else f"≤ {most:g}{unit}"
        self.verdict(what, form.format(value), wanted, met=met)

    def verdict(self, what: str, measured: str, wanted: str, *, met: bool) -> None:
        """A line of the goals; what is missed is named at the end of the page, too."""
        self.row(what, measured, wanted, "yes" if met else "**no**")
        if not met:
            self.missed.append(f"{what}: {measured}, wanted {wanted}")

    def text(self, *lines: str) -> None:
        """A paragraph."""
        self.say("", *lines)

    def say(self, *lines: str) -> None:
        """Lines as they are."""
        self.lines += lines
        print("\n".join(lines), flush=True)


@dataclass(frozen=True)
class Result:
    """What one part found."""

    lines: list[str]
    missed: list[str]
    seconds: float


@dataclass(frozen=True)
class Run:
    """How a whole run measures: beside whom, quickly, and ledgers of how many tasks."""

    peers: Peers
    quick: bool = False
    rows: Sequence[int] = (10_000, 100_000, 1_000_000)


Part = Callable[[Report, Run], None]


class Kept:
    """The results so far, in a file; those of another machine or other versions do not count."""

    def __init__(self, file: Path, where: str) -> None:
        self.file, self._where = file, where
        self.results: dict[str, Result] = {}

    def load(self) -> None:
        """Take over what an earlier run on the same machine kept."""
        if not self.file.exists():
            return
        kept = json.loads(self.file.read_text(encoding="utf-8"))
        if kept["where"] == self._where:
            self.results = {name: Result(**result) for name, result in kept["results"].items()}

    def clear(self) -> None:
        """Forget all, also what the file holds."""
        self.results = {}
        self.file.unlink(missing_ok=True)

    def advice(self) -> str:
        """What somebody whose run has ended early can do."""
        if not self.results:
            return "No part has a result."
        return (
            f"The results of {', '.join(self.results)} are kept in {self.file}. To measure only "
            "what is missing, run make bench BENCH_ARGS=--resume"
        )

    def add(self, name: str, result: Result) -> None:
        """Write one more result before the next part begins."""
        self.results[name] = result
        self.file.parent.mkdir(parents=True, exist_ok=True)
        part = self.file.with_suffix(".part")
        results = {name: asdict(result) for name, result in self.results.items()}
        part.write_text(json.dumps({"where": self._where, "results": results}), encoding="utf-8")
        part.replace(self.file)


def measure(
    run: Run, wanted: Iterable[str], parts: Mapping[str, Part], kept: Kept,
    clock: Callable[[], float],
) -> list[str]:  # fmt: skip
    """Measure the parts that have no result yet; why each failed, if any did."""
    failed = []
    for name in wanted:
        if name in kept.results:
            continue
        report, began = Report(), clock()
        try:
            parts[name](report, run)
        except _FAILURES as error:
            failed.append(f"part `{name}` failed: {error}")
            print(f"\nbench: {failed[-1]}", file=sys.stderr, flush=True)
        else:
            kept.add(name, Result(report.lines, report.missed, clock() - began))
    return failed
