"""`make demo`: control, two agents, some 60 tasks over real files, an owner who comes back, and an
agent that dies. Needs no root and leaves nothing behind. Every number that it prints comes from
control's event feed or from a comparison of bytes.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rae_protocol import models
from rae_protocol.client import RaeClient
from rae_protocol.names import TaskState
from tools.devmesh import SCALE, DevMesh, wait_until
from tools.processes import MeshError
from tools.scenarios.demo_work import (
    Work,
    find_ollama,
    llm_work,
    pick_files,
    quick_work,
    slow_work,
)
from tools.scenarios.load import show_counts, show_progress

STEP_TIMEOUT_S = 60.0
LLM_TIMEOUT_S = 60.0


@dataclass(slots=True)
class Board:
    """Follows control's event feed: the one source of every count and of the progress line."""

    admin: RaeClient
    started: float = field(default_factory=time.monotonic)
    cursor: int = 0
    state: dict[str, str] = field(default_factory=dict)
    where: dict[str, str] = field(default_factory=dict)
    counts: Counter[str] = field(default_factory=Counter)
    done_times: Counter[str] = field(default_factory=Counter)
    done_on: dict[str, str] = field(default_factory=dict)
    stopped_ms: dict[str, float] = field(default_factory=dict)
    _shown: str = ""
    _shown_at: float = 0.0

    def wait(self, condition: Callable[[], bool], what: str, timeout_s: float) -> None:
        """Follow the feed until the condition holds. Raises MeshError."""

        def holds() -> bool:
            self.follow(0.25)
            return condition()

        wait_until(holds, timeout_s, what)

    def follow(self, wait_s: float = 0.0) -> None:
        """Take in what is new."""
        page = self.admin.events(self.cursor, wait_s)
        for event in page.events:
            self._take(event)
        self.cursor = page.next
        self._show()

    def _take(self, event: models.EventView) -> None:
        if event.task_id is None:
            self.counts["lost"] += event.reason == "heartbeat_timeout"
            return
        if event.to_state is None:
            self.counts["refused"] += 1
            return
        self.state[event.task_id] = event.to_state
        if event.to_state == TaskState.FAILED.value:
            raise MeshError(f"{event.task_id} failed: {event.reason}, {event.detail}")
        if event.to_state == TaskState.LEASED.value:
            self.counts["attempts"] += 1
        if event.node_id and event.to_state in {"leased", "running"}:
            self.where[event.task_id] = event.node_id
        if event.to_state == TaskState.SUCCEEDED.value:
            self.done_times[event.task_id] += 1
            self.done_on[event.task_id] = str(event.node_id)
        if event.reason.startswith("yield_"):
            self.counts["yields"] += 1
            if isinstance(event.detail, dict) and event.detail.get("stopped_ms") is not None:
                self.stopped_ms[event.task_id] = float(event.detail["stopped_ms"])
        elif event.reason == "lease_expired":
            self.counts["expired"] += 1

    def running_on(self, node: str, prefix: str) -> list[str]:
        """Tasks of a family that run on a node now."""
        return [
            task_id
            for task_id, state in self.state.items()
            if state == "running" and self.where[task_id] == node and task_id.startswith(prefix)
        ]

    def done(self, prefix: str = "") -> int:
        """How many of a family have succeeded."""
        return sum(task_id.startswith(prefix) for task_id in self.done_times)

    def _show(self) -> None:
        states = Counter(self.state.values())
        order = ("waiting", "queued", "running", "succeeded", "failed")
        parts = [f"{states[state]} {state}" for state in order if states[state]]
        line = f"[{time.monotonic() - self.started:5.1f} s] " + ", ".join(parts)
        show_progress(line)
        news = ", ".join(parts) != self._shown and time.monotonic() - self._shown_at >= 1.0
        if news and not sys.stdout.isatty():
            print(line, flush=True)
            self._shown, self._shown_at = ", ".join(parts), time.monotonic()

    def say(self, text: str) -> None:
        """A line that stays."""
        print(("\r\x1b[K" if sys.stdout.isatty() else "") + text, flush=True)


def check(work: Sequence[Work], rae: RaeClient, folder: Path) -> tuple[int, list[str]]:
    """Fetch every artifact and compare it; returns how many there are and what is wrong."""
    compared, wrong = 0, []
    for item in work:
        view = rae.task(item.task_id)
        if view.state is not TaskState.SUCCEEDED:
            error = f"{view.error.code}: {view.error.message}" if view.error else view.reason
            wrong.append(f"{item.task_id} is {view.state.value} ({error})")
        elif item.artifact is not None and item.expected is not None:
            target = folder / item.task_id
            rae.fetch_artifact(item.task_id, item.artifact, target)
            compared += 1
            if target.read_bytes() != item.expected():
                wrong.append(f"{item.artifact} of {item.task_id} has other bytes than here")
    return compared, wrong


def owner_returns(mesh: DevMesh, board: Board) -> list[str]:
    """`rae-node pause` on n1 while it works; its tasks end up on n2."""
    board.say("-- n1 works, and its owner comes back:  rae-node pause")
    board.wait(lambda: bool(board.running_on("n1", "owner")), "n1 works", STEP_TIMEOUT_S)
    taken = board.running_on("n1", "owner")
    board.say(f"   {mesh.nodes['n1'].owner('pause')}")
    board.wait(
        lambda: all(task in board.stopped_ms for task in taken), "n1 hands back", STEP_TIMEOUT_S
    )
    measured = ", ".join(f"{task} stopped in {ms:.0f} ms" for task, ms in board.stopped_ms.items())
    board.say(f"   control has them back: {measured}")
    board.wait(lambda: all(t in board.done_on for t in taken), "n2 did them", STEP_TIMEOUT_S)
    wrong = [f"{t} was done on {board.done_on[t]}" for t in taken if board.done_on[t] != "n2"]
    if not wrong:
        board.say("   n2 has done them; the owner leaves again:  rae-node resume")
    mesh.nodes["n1"].owner("resume")
    return wrong


def agent_dies(mesh: DevMesh, board: Board) -> list[str]:
    """SIGKILL to n2's agent while it works; its tasks are done once, on n1."""
    board.say("-- n2 works, and its agent is killed:  kill -9")
    board.wait(lambda: bool(board.running_on("n2", "crash")), "n2 works", STEP_TIMEOUT_S)
    taken = board.running_on("n2", "crash")
    mesh.nodes["n2"].kill()
    died = time.monotonic()
    board.say(f"   {', '.join(taken)} died with it; control finds out by the silence")
    board.wait(lambda: all(t in board.done_on for t in taken), "n1 did them", STEP_TIMEOUT_S)
    board.say(f"   n1 had done them {time.monotonic() - died:.1f} s later")
    board.wait(lambda: board.counts["lost"] > 0, "n2 is offline", STEP_TIMEOUT_S)
    return [f"{t} was done on {board.done_on[t]}" for t in taken if board.done_on[t] != "n1"]


def answered(rae: RaeClient, board: Board, questions: Sequence[Work]) -> list[Work]:
    """The questions that the model answered in time; a slow model is no fault of the mesh."""
    end = time.monotonic() + LLM_TIMEOUT_S
    done = []
    for item in questions:
        try:
            view = rae.wait(item.task_id, max(0.0, end - time.monotonic()))
        except TimeoutError:
            board.say(f"   {item.task_id}: no answer yet; cancelled")
            rae.cancel(item.task_id)
            continue
        board.say(f"   {item.task_id}: {json.dumps(view.result)[:200]}")
        done.append(item)
    return done


def report(board: Board, compared: int, work: Sequence[Work]) -> None:
    """The table at the end."""
    board.follow()
    attempts = board.counts["attempts"]
    board.say("")
    show_counts(
        {
            "tasks": len(work),
            "succeeded": sum(item.task_id in board.done_on for item in work),
            "attempts": attempts,
            "attempts that ended early": attempts - sum(board.done_times.values()),
            "handed back for the owner": board.counts["yields"],
            "leases that ran out": board.counts["expired"],
            "nodes lost": board.counts["lost"],
            "artifacts equal byte for byte": compared,
            "duplicates": duplicates(board),
            "seconds": round(time.monotonic() - board.started, 1),
        }
    )


def duplicates(board: Board) -> int:
    """Successes beyond the first of each task, by the event feed."""
    return sum(times - 1 for times in board.done_times.values())


NEXT = """Try next, each in a terminal of its own:
  .venv/bin/rae-control serve --dev --data data
  .venv/bin/rae-node run --dev --data data
then
  .venv/bin/raectl nodes list
  .venv/bin/raectl submit --wait --input f=README.md --artifact sum.txt:text/plain -- sha256sum f
  .venv/bin/raectl tasks
  .venv/bin/rae-node pause 10m --data data"""


def options(_parser: argparse.ArgumentParser) -> None:
    """It has none."""


def run(_args: argparse.Namespace) -> int:
    """The whole demo; returns its exit code."""
    ollama = find_ollama()
    node_settings = {"isolation": "auto", **({"ollama_url": ollama[0]} if ollama else {})}
    print(
        f"Control with its Redis and two agents start. Every period is a {SCALE}th of the real\n"
        f"one, so a silent node is given up after {120 / SCALE:g} s instead of 120 s."
    )
    with DevMesh(("n1", "n2"), node=node_settings) as mesh, tempfile.TemporaryDirectory() as folder:
        rae, board = mesh.rae, Board(mesh.admin)
        level = mesh.admin.node("n1").isolation
        print(f"Control listens on {mesh.url}; n1 and n2 are online (isolation: {level}).")
        files = pick_files(20)
        blobs = {name: rae.upload_blob(path) for name, path in files.items()}
        work = quick_work(files, blobs)
        questions = llm_work(ollama[1]) if ollama else []
        extra = f", and {len(questions)} questions to {ollama[1]}" if ollama else ""
        print(f"{len(files)} files are uploaded, {len(work)} tasks submitted{extra}.")
        rae.submit([item.body for item in [*work, *questions]])
        board.wait(lambda: board.done() >= len(work) // 3, "a third is done", STEP_TIMEOUT_S)

        wrong: list[str] = []
        for prefix, step in (("owner", owner_returns), ("crash", agent_dies)):
            more = slow_work(prefix, 4)
            rae.submit([item.body for item in more])
            work += more
            wrong += step(mesh, board)
        names = {item.task_id for item in work}
        board.wait(lambda: names <= board.done_on.keys(), "every task is done", 2 * STEP_TIMEOUT_S)
        work += answered(rae, board, questions)
        compared, differing = check(work, rae, Path(folder))
        wrong += differing
        report(board, compared, work)
        if duplicates(board):
            wrong.append("a task was done twice")
    left = mesh.leftovers()
    wrong += [f"process {pid} was left: {command}" for pid, command in left.items()]
    if wrong:
        print("\nNot as it should be:\n  " + "\n  ".join(wrong), file=sys.stderr)
        return 1
    print("no process is left\n" + NEXT)
    return 0
