"""Stand-ins for what a node sees: its clocks, its detector, its hardware."""

from __future__ import annotations

import json
from dataclasses import replace
from io import StringIO
from pathlib import Path
from typing import Any

import yaml

from rae_node.config.layout import Layout
from rae_node.errors import NodeError
from rae_node.guard.inputs import InputState
from rae_node.guard.sources.input import InputLink
from rae_node.runners.capabilities import Machine
from rae_node.telemetry.log import EventLog
from rae_node.workspace.recovery import (
    State,
    keep,
)
from rae_protocol.errors import Unreachable


class SetClock:
    """A machine's clocks, which a test moves; of its first boot at 10 000 s, in December 2026."""

    def __init__(self) -> None:
        self.wall_at, self.boot_at, self.boots = 1_796_000_000.0, 10_000.0, 1

    def wall(self) -> float:
        return self.wall_at

    def boot(self) -> float:
        return self.boot_at

    def monotonic(self) -> float:
        return self.boot_at

    def boot_id(self) -> str:
        return f"boot-{self.boots}"

    def passes(self, seconds: float) -> None:
        """Time goes on."""
        self.wall_at += seconds
        self.boot_at += seconds

    def reboots(self, off_s: float, wall: float | None = None) -> None:
        """Off for so long; then the wall clock is right, or so."""
        self.boots, self.boot_at = self.boots + 1, 0.0
        self.wall_at = self.wall_at + off_s if wall is None else wall


class ScriptedInput(InputLink):
    """A detector that a test plays; without a state it is gone."""

    def __init__(self, state: InputState | None) -> None:
        super().__init__(Path("/nowhere"))
        self.state = state

    def ask(self) -> InputState:
        if self.state is None:
            raise NodeError("blind", "gone")
        return self.state


MACHINE = Machine(2, "x86_64", "cpu", 8192.0, "debian", "3.10.0", None, False, None)
UNREACHABLE = Unreachable("gone")


class Log:
    """An event log that a test can read."""

    def __init__(self) -> None:
        self.stream = StringIO()
        self.log = EventLog("n1", self.stream)

    def events(self, name: str) -> list[dict[str, object]]:
        self.log.flush()
        lines = [json.loads(line) for line in self.stream.getvalue().splitlines()]
        return [line["attrs"] for line in lines if line["event"] == name]


def make_workspace(layout: Layout, name: str = "t1.1") -> Path:
    folder = layout.workdir / name
    (folder / "work").mkdir(parents=True)
    return folder


def keep_one(layout: Layout, task_id: str, **more: Any) -> None:
    state = State(task_id, 1, "lease-00000001", "DONE", 1000.0)
    keep(make_workspace(layout, f"{task_id}.1"), replace(state, **more))


def change(file: Path, section: str, name: str, value: object) -> None:
    data = yaml.safe_load(file.read_text())
    data[section][name] = value
    file.write_text(yaml.safe_dump(data))
