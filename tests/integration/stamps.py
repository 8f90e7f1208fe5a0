"""What the tasks of a test write about themselves: `tools/stamp.py`, on CLOCK_BOOTTIME."""

from __future__ import annotations

import time
from itertools import pairwise
from pathlib import Path
from typing import Any

from tests.until import until
from tools.devmesh import install_stamp
from tools.stamp import stamps_in


class Stamps:
    """What the tasks of a test wrote."""

    def __init__(self, folder: Path) -> None:
        self.tasks = install_stamp(folder)
        self.file = folder / "stamps"

    def body(self, seconds: float, **extra: Any) -> dict[str, Any]:
        params = {"stamps": str(self.file), "seconds": seconds}
        return {"kind": "python", "params": {"task": "stamp", "params": params}, **extra}

    def lines(self, task_id: str, attempt: int | None = None) -> list[dict[str, Any]]:
        found = stamps_in(self.file)
        return [s for s in found if s["task"] == task_id and attempt in {None, s["attempt"]}]

    def lived(self, task_id: str) -> dict[int, tuple[float, float]]:
        """First and last sign of life of each attempt, on the boot clock."""
        spans: dict[int, tuple[float, float]] = {}
        for line in self.lines(task_id):
            first, _ = spans.get(line["attempt"], (line["at"], 0.0))
            spans[line["attempt"]] = (first, line["at"])
        return spans

    def ended(self, task_id: str) -> list[int]:
        return [s["attempt"] for s in self.lines(task_id) if s["what"] == "end"]

    def silent(self, task_id: str) -> bool:
        """Whether the first attempt gave no sign of life for ten times its rhythm of 20 ms."""
        now = time.clock_gettime(time.CLOCK_BOOTTIME)
        return now - self.lived(task_id)[1][1] > 0.2

    def alive_alone(self, task_id: str) -> None:
        spans = sorted(self.lived(task_id).values())
        for (_, last), (first, _) in pairwise(spans):
            assert last < first, f"two attempts of {task_id} lived at once: {spans}"

    def ran_apart(self, task_id: str) -> None:
        """The same by runs of the program, also where two attempts have the same number."""
        runs: dict[str, tuple[float, float]] = {}
        for line in self.lines(task_id):
            first, _ = runs.get(line["run"], (line["at"], 0.0))
            runs[line["run"]] = (first, line["at"])
        assert len(runs) > 1
        for (_, last), (first, _) in pairwise(sorted(runs.values())):
            assert last < first, f"two runs of {task_id} lived at once: {runs}"


def started(stamps: Stamps, task_id: str, attempt: int = 1) -> None:
    until(lambda: stamps.lines(task_id, attempt), f"attempt {attempt} of {task_id} runs", 20)
