"""enable-node asks the node whether its owner has paused it, whatever the controller's clock."""

from __future__ import annotations

import sys
import time
from pathlib import Path

import pytest
import yaml

from rae_node.config.layout import Layout
from rae_node.guard.sources.pause import PauseSource
from rae_protocol.clock import SystemClock
from tests.integration.ansible.role import ROLE, Played, play


class Behind(SystemClock):
    """The node's wall clock when the pause began: a day behind the one of today."""

    def wall(self) -> float:
        return time.time() - 86400


def run(folder: Path, layout: Layout) -> Played:
    """The role's first tasks, against the real program for this node."""
    program = folder / "bin" / "rae-node"
    program.parent.mkdir(exist_ok=True)
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m rae_node "$@" --root {layout.root}\n')
    program.chmod(0o755)
    steps = yaml.safe_load((ROLE / "tasks" / "check_node.yml").read_text("utf-8"))
    until = next(
        number for number, step in enumerate(steps) if step["name"] == "Start the input detector"
    )
    return play(folder / "play", {"desk": {}}, steps[:until], {"_node_root": str(layout.root)})


@pytest.fixture
def layout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Layout:
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=":")
    made = Layout(tmp_path / "node")
    made.create()
    return made


def test_a_pause_that_the_controllers_clock_has_passed_still_holds(
    layout: Layout, tmp_path: Path
) -> None:
    PauseSource(layout.run / "pause.json", Behind()).set(3600)
    done = run(tmp_path, layout)
    assert done.code != 0
    assert "desk: its owner has paused this node, for another 60 min" in done.words


def test_a_pause_without_an_end_and_one_by_hand_stop_it(layout: Layout, tmp_path: Path) -> None:
    layout.pause_file.touch()
    done = run(tmp_path, layout)
    assert "desk: its owner has paused this node, without an end" in done.words
    layout.pause_file.unlink()
    assert run(tmp_path, layout).code == 0
