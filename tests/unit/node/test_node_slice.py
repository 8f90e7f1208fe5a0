"""What is ours where the agent is a unit: everything in rae.slice, dead or alive."""

from __future__ import annotations

import os
import threading
from pathlib import Path

from rae_node.host import processes


def test_everything_in_the_slice_is_ours(tmp_path: Path) -> None:
    for unit, pids in (("rae-task@1.service/task", "901\n902\n"), ("rae-ollama.service", "903\n")):
        folder = tmp_path / unit
        folder.mkdir(parents=True)
        (folder / "cgroup.procs").write_text(pids)
    assert processes.own_pids(tmp_path) >= {901, 902, 903, os.getpid()}
    (tmp_path / "cpu.stat").write_text("usage_usec 2500000\nuser_usec 1\nsystem_usec 2\n")
    assert processes.own_cpu_seconds([], tmp_path) == 2.5


def test_an_agent_that_is_no_unit_of_the_slice_owns_its_tree_alone(tmp_path: Path) -> None:
    assert (
        processes.own_slice("/rae.slice/rae-node.service", str(tmp_path)) == tmp_path / "rae.slice"
    )
    for elsewhere in ("/user.slice/session-1.scope", "/rae.slice-of-others/x", "/rae.slice", ""):
        assert processes.own_slice(elsewhere) is None


def test_units_that_end_while_the_guard_looks_do_not_blind_it(tmp_path: Path) -> None:
    (tmp_path / "rae-node.service").mkdir()
    (tmp_path / "rae-node.service" / "cgroup.procs").write_text("901\n")
    done = threading.Event()

    def come_and_go() -> None:
        while not done.is_set():
            for number in range(20):
                (tmp_path / f"rae-task-kill@{number}.service" / "task").mkdir(parents=True)
            for number in range(20):
                (tmp_path / f"rae-task-kill@{number}.service" / "task").rmdir()
                (tmp_path / f"rae-task-kill@{number}.service").rmdir()

    units = threading.Thread(target=come_and_go)
    units.start()
    try:
        assert all(901 in processes.own_pids(tmp_path) for _ in range(500))
    finally:
        done.set()
        units.join()
