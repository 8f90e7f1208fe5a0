"""What an agent keeps, wipes and finds again: state.json, workspaces, a bounded spool."""

from __future__ import annotations

import signal
import subprocess
import sys
from dataclasses import replace

import pytest
import yaml

from rae_node.config.files import (
    dev_config,
    dev_runtime,
)
from rae_node.config.layout import Layout
from rae_node.workspace.recovery import (
    KEPT,
    read_state,
)
from rae_protocol.clock import SystemClock
from tests.integration.node.harness import FAST, MakeRig
from tests.unit.node.harness import UNREACHABLE, change, keep_one, make_workspace
from tests.until import until


def states_of(layout: Layout) -> list[str]:
    return [state.state for item in layout.workdir.iterdir() if (state := read_state(item))]


def test_a_running_task_has_its_state_in_its_workspace(make_rig: MakeRig, layout: Layout) -> None:
    """Contract: C6."""
    rig = make_rig()
    rig.control.give(params={"command": "sleep", "args": ["600"]})
    until(lambda: states_of(layout) == ["RUNNING"], "the state says so")


def test_nothing_of_an_ended_task_stays_by_default(make_rig: MakeRig, layout: Layout) -> None:
    """Contract: A12."""
    rig = make_rig()
    rig.run(params={"command": "true"})
    until(lambda: not list(layout.workdir.iterdir()), "the workspace is gone")


@pytest.mark.parametrize(("command", "state"), [("true", "DONE"), ("false", "FAILED")])
def test_the_miner_profile_keeps_the_folders_of_ended_tasks(
    make_rig: MakeRig, layout: Layout, command: str, state: str
) -> None:
    """Contract: Z4."""
    rig = make_rig(profile="miner")
    rig.run(params={"command": command})
    (folder,) = layout.workdir.iterdir()
    found = read_state(folder)
    assert folder.name.endswith(KEPT) and (folder / "logs" / "exec.log").exists()
    assert found and found.state == state
    assert found.keep_s == {"DONE": 24 * 3600, "FAILED": 7 * 24 * 3600}[state]


def test_a_yield_wipes_in_every_profile(make_rig: MakeRig, layout: Layout) -> None:
    """Contract: Z4."""
    rig = make_rig(profile="miner")
    rig.control.give(params={"command": "sleep", "args": ["600"]})
    until(rig.running, "the task runs")
    rig.owner.present = True
    rig.agent.guard.wake()
    until(lambda: rig.control.of("yield"), "the task is handed back")
    assert list(layout.workdir.iterdir()) == []


def test_the_first_sweep_is_at_the_start(make_rig: MakeRig, layout: Layout) -> None:
    keep_one(layout, "t1", at=SystemClock().wall(), keep_s=1e300)
    make_rig()
    until(lambda: not list(layout.workdir.iterdir()), "what the profile does not keep is gone")


def test_an_agent_that_was_killed_leaves_a_state_that_the_next_one_finds(
    layout: Layout,
) -> None:
    """Contract: C6."""
    code = (
        "import os, sys, time; from pathlib import Path\n"
        "from rae_node.workspace.recovery import *\n"
        "state = State('t1', 1, 'lease-00000001', 'RUNNING', time.time())\n"
        "while True: write_state(Path(sys.argv[1]), state); print('x', flush=True)"
    )
    folder = make_workspace(layout)
    writer = subprocess.Popen(
        [sys.executable, "-c", code, str(folder)], stdout=subprocess.PIPE, text=True
    )
    assert writer.stdout is not None
    for _ in range(50):
        writer.stdout.readline()
    writer.send_signal(signal.SIGKILL)
    writer.wait()
    writer.stdout.close()
    found = read_state(folder)
    assert found is not None and found.state == "RUNNING"


def test_a_full_spool_takes_no_more_work_until_control_is_back(make_rig: MakeRig) -> None:
    rig = make_rig(settings=replace(FAST, spool_max_mb=0.0001))
    until(lambda: rig.control.of("poll"), "a poll")
    rig.control.fail["result"] = UNREACHABLE
    rig.control.give(params={"command": "echo", "args": ["x" * 500]})
    until(lambda: "spool_full" in rig.agent.admission.reasons(), "the spool is full")
    assert not rig.agent.may_take()
    rig.control.fail.clear()
    rig.agent.delivery.wake()
    until(rig.agent.may_take, "work again")


def test_a_full_disk_keeps_work_away(make_rig: MakeRig) -> None:
    rig = make_rig(settings=replace(FAST, disk_low_mb=1e12))
    until(lambda: rig.control.of("heartbeat"), "a heartbeat")
    assert "disk_low" in rig.control.of("heartbeat")[-1].reasons
    assert rig.control.of("poll") == []


@pytest.fixture
def files(layout: Layout) -> Layout:
    layout.config_file.write_text(yaml.safe_dump(dev_config("n1", "http://127.0.0.1:1")))
    layout.runtime_file.write_text(yaml.safe_dump(dev_runtime()))
    return layout


def test_a_running_agent_obeys_a_tightened_limit(make_rig: MakeRig, files: Layout) -> None:
    rig = make_rig()
    until(lambda: rig.control.of("poll"), "a poll")
    change(files.runtime_file, "automation", "enabled", False)
    sections = yaml.safe_load(files.runtime_file.read_text())
    sections["execution"]["heartbeat_interval_sec"] = 0.2
    files.runtime_file.write_text(yaml.safe_dump(sections))
    data = yaml.safe_load(files.config_file.read_text())
    files.config_file.write_text(yaml.safe_dump({**data, "heartbeat_interval_sec": 0.2}))
    rig.agent.look_at_files()
    until(lambda: "automation_disabled" in rig.agent.admission.reasons(), "it is off")
    assert not rig.agent.may_take()
