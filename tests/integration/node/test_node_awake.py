"""The machine stays awake while a task runs, and only then."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from contextlib import suppress
from pathlib import Path

import pytest

from rae_node.agent.sleep_inhibitor import Awake
from rae_node.config.layout import Layout
from rae_node.isolation.base import ProcessIsolation
from tests.integration.node.harness import MakeRig
from tests.unit.node.harness import Log
from tests.until import until


@pytest.fixture
def log() -> Log:
    return Log()


def holding(file: Path) -> tuple[str, ...]:
    """Stands in for systemd-inhibit: a file is there while it holds."""
    return ("sh", "-c", f"echo $$ >> {file}; cat; rm {file}")


def test_sleep_is_blocked_while_a_task_runs_and_only_then(tmp_path: Path, log: Log) -> None:
    """Contract: B5."""
    file = tmp_path / "held"
    awake = Awake(log.log, holding(file))
    for _ in range(2):
        awake.follow(1)
        until(lambda: file.exists() and file.read_text(), "it is held")
        held = file.read_text()
        awake.follow(2)
        assert file.read_text() == held
        awake.follow(0)
        until(lambda: not file.exists(), "it is let go")
        awake.follow(0)
    assert log.events("sleep_not_blocked") == []


def test_the_sleep_block_ends_with_an_agent_that_is_killed(tmp_path: Path) -> None:
    """Contract: B5."""
    file = tmp_path / "held"
    program = (
        "import sys, time\nfrom rae_node.agent.sleep_inhibitor import Awake\n"
        "from rae_node.telemetry.log import EventLog\n"
        f"Awake(EventLog('n1', sys.stderr), {holding(file)!r}).follow(1)\ntime.sleep(60)\n"
    )
    agent = subprocess.Popen([sys.executable, "-c", program])
    holder = int(until(lambda: file.exists() and file.read_text(), "it is held"))
    agent.send_signal(signal.SIGKILL)
    agent.wait()
    until(lambda: not file.exists(), "it is let go")
    with suppress(ChildProcessError):  # the tests' process inherits it, if it looks after orphans
        os.waitpid(holder, 0)


def test_the_weakest_isolation_keeps_the_machine_awake_too(
    make_rig: MakeRig, layout: Layout, tmp_path: Path
) -> None:
    """Contract: B5."""
    file = tmp_path / "held"
    rig = make_rig(isolation=ProcessIsolation(layout.root), sleep_block=holding(file))
    assert rig.agent.context.isolation.level == "process"
    rig.control.give("cli", params={"command": "sleep", "args": ["60"]})
    until(rig.running, "it runs")
    until(lambda: file.exists() and file.read_text(), "it is held")
    rig.owner.present = True
    rig.agent.guard.wake()
    until(lambda: not file.exists(), "it is let go")


@pytest.mark.parametrize(
    "command", [("sh", "-c", "echo 'Failed to inhibit: Access denied' >&2; exit 1"), ("/no/such",)]
)
def test_without_the_right_to_block_sleep_the_log_says_so_once(
    log: Log, command: tuple[str, ...]
) -> None:
    """Contract: B5."""
    awake = Awake(log.log, command)
    for _ in range(3):
        awake.follow(1)
        until(lambda: log.events("sleep_not_blocked"), "the log names it")
        awake.follow(0)
    (told,) = log.events("sleep_not_blocked")
    assert "denied" in str(told["error"]) or "/no/such" in str(told["error"])
