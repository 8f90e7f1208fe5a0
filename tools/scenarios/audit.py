"""The audit of a mesh: the ledger against what was promised, and against the tasks' stamps."""

from __future__ import annotations

import contextlib
import json
import threading
import time
from collections import Counter, defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from rae_control.maintenance.backup import check_folder
from rae_protocol import models
from rae_protocol.client import RaeClient
from rae_protocol.errors import RaeError
from rae_protocol.names import TaskState
from tools.devmesh import DevMesh
from tools.stamp import stamps_in


@dataclass(slots=True)
class Record:
    """What was promised to whom; the audit holds the ledger to it."""

    submitted: set[str] = field(default_factory=set)
    delivered: set[tuple[str, int]] = field(default_factory=set)
    refused: set[tuple[str, int]] = field(default_factory=set)
    counts: Counter[str] = field(default_factory=Counter)
    problems: list[str] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def count(self, what: str) -> None:
        """One more of these."""
        with self.lock:
            self.counts[what] += 1


def all_tasks(admin: RaeClient) -> Iterator[models.TaskView]:
    """Everything in the ledger, with history."""
    cursor: str | None = None
    while True:
        page = admin.tasks(limit=500, cursor=cursor)
        for view in page.tasks:
            yield admin.task(view.task_id)
        cursor = page.next
        if cursor is None:
            return


def all_events(admin: RaeClient) -> Iterator[models.EventView]:
    """The whole event feed."""
    cursor = 0
    while events := (page := admin.events(cursor)).events:
        yield from events
        cursor = page.next


def audit(mesh: DevMesh, stamps: Path, record: Record) -> dict[str, int]:
    """Hold the ledger to the record; problems go into it, the counts come back."""
    admin, problems = mesh.admin, record.problems
    tasks = {view.task_id: view for view in all_tasks(admin)}
    successes: Counter[str] = Counter()
    stale: set[tuple[str, int | None]] = set()
    for event in all_events(admin):
        if event.task_id is not None and event.to_state == TaskState.SUCCEEDED.value:
            successes[event.task_id] += 1
        elif event.task_id is not None and event.reason == "stale_result":
            stale.add((event.task_id, event.attempt))
    problems += [
        f"{task_id}: its submit got 2xx, and it is not in the ledger"
        for task_id in record.submitted - tasks.keys()
    ]
    problems += [f"{task}: succeeded {n} times" for task, n in successes.items() if n > 1]
    for view in tasks.values():
        problems += task_problems(view)
    problems += result_problems(tasks, stale, record)
    told = _delivered_by_agents(mesh, tasks, problems)
    problems += ledger_problems(mesh)
    attempts, overlapping = lives_of(stamps)
    problems += overlapping
    states = Counter(view.state.value for view in tasks.values())
    return {
        "tasks in the ledger": len(tasks),
        "submits that got 2xx (tasks)": len(record.submitted),
        **{f"tasks {state}": number for state, number in sorted(states.items())},
        "attempts": sum(view.attempts for view in tasks.values()),
        "attempts that ran (stamps)": attempts,
        "failures": sum(view.failures for view in tasks.values()),
        "interruptions": sum(view.interruptions for view in tasks.values()),
        "results that got 2xx": told + len(record.delivered),
        "late results that got 409": len(record.refused)
        + sum(1 for _ in _agent_events(mesh, "result_dropped")),
        "tasks that succeeded twice": sum(times > 1 for times in successes.values()),
        "attempts alive at once": len(overlapping),
    }


def ledger_problems(mesh: DevMesh) -> list[str]:
    """What `rae-control check --deep` finds."""
    return [f"check: {violation}" for violation in check_folder(mesh.data, deep=True)]


def drain(mesh: DevMesh, timeout_s: float = 180.0) -> int:
    """Let every task end; returns how many have not."""
    end, left = time.monotonic() + timeout_s, -1
    while left and time.monotonic() < end:
        with contextlib.suppress(RaeError):
            left = sum(len(mesh.admin.tasks(state=state.value, limit=500).tasks)
                       for state in TaskState if not state.final)  # fmt: skip
        time.sleep(0.5)
    return left


def task_problems(view: models.TaskView) -> list[str]:
    """A task that has not ended, failed without reason, or whose result is another attempt's."""
    found = []
    if not view.state.final:
        found.append(f"{view.task_id}: has not ended, it is {view.state.value} ({view.why})")
    elif view.state is TaskState.FAILED and view.reason not in {
        "too_many_interruptions", "dependency_failed",
    }:  # fmt: skip
        found.append(f"{view.task_id}: failed with {view.reason}: {view.error}")
    elif view.state is TaskState.SUCCEEDED:
        winners = [entry.attempt for entry in view.history if entry.state == "succeeded"]
        if winners != [(view.result or {}).get("attempt")]:
            found.append(f"{view.task_id}: result {view.result} of attempts {winners}")
        hashes = [artifact.sha256 for artifact in view.artifacts]
        if hashes != [text for text in [(view.result or {}).get("sha256")] if text]:
            found.append(f"{view.task_id}: artifacts {hashes}, result {view.result}")
    return found


def result_problems(
    tasks: dict[str, models.TaskView], stale: set[tuple[str, int | None]], record: Record
) -> list[str]:
    """The late node's results: in the ledger if they got 2xx, else in the history as refused."""
    found = [
        f"{key}: its result got 2xx, and the ledger does not have it"
        for key in record.delivered
        if _attempt_state(tasks, key) != "succeeded"
    ]
    for key in record.refused - record.delivered:
        if _attempt_state(tasks, key) == "succeeded":
            found.append(f"{key}: its result got 409, and the ledger has it")
        if key not in stale:
            found.append(f"{key}: its refused result is not in the history")
    return found


def _attempt_state(tasks: dict[str, models.TaskView], key: tuple[str, int]) -> str | None:
    view = tasks.get(key[0])
    return next((e.state for e in view.history if e.attempt == key[1]), None) if view else None


def _agent_events(mesh: DevMesh, event: str) -> Iterator[tuple[str, dict[str, Any]]]:
    for node in mesh.nodes.values():
        for line in node.log.read_text(encoding="utf-8", errors="replace").splitlines():
            try:
                entry = json.loads(line)
            except ValueError:
                continue  # half a line of an agent that was killed while it wrote
            if isinstance(entry, dict) and entry.get("event") == event:
                yield node.name, entry


def _delivered_by_agents(
    mesh: DevMesh, tasks: dict[str, models.TaskView], problems: list[str]
) -> int:
    """Each `result_delivered` of an agent's log must be an attempt of its in the ledger."""
    count = 0
    for name, entry in _agent_events(mesh, "result_delivered"):
        count += 1
        view = tasks.get(str(entry["task_id"]))
        if view is None or not any(
            attempt.node_id == name and attempt.state in {"succeeded", "failed"}
            for attempt in view.history
        ):
            problems.append(f"{entry['task_id']}: {name} delivered it, and the ledger lacks it")
    return count


def lives_of(stamps: Path) -> tuple[int, list[str]]:
    """How many attempts ran, and those of one task that lived at the same time."""
    lives: dict[str, dict[int, list[float]]] = defaultdict(lambda: defaultdict(list))
    for stamp in stamps_in(stamps):
        lives[stamp["task"]][stamp["attempt"]].append(stamp["at"])
    found = []
    for task_id, attempts in lives.items():
        spans = sorted((min(at), max(at), number) for number, at in attempts.items())
        for (_, last, one), (first, _, other) in pairwise(spans):
            if first <= last:
                found.append(f"{task_id}: attempts {one} and {other} lived at the same time")
    return sum(len(attempts) for attempts in lives.values()), found
