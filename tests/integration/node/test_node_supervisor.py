"""The supervisor ends its task, whatever the task, the agent or the clock do."""

from __future__ import annotations

import ast
import contextlib
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, replace
from pathlib import Path

import pytest

from rae_node.config.layout import Layout
from rae_node.isolation.base import PROGRAM, ProcessIsolation, Spec
from rae_node.isolation.supervisor_client import Handle
from rae_node.runners.trust import identity
from rae_node.supervisor import process_tree
from rae_node.supervisor.limits import is_its_doing
from tests.until import until

MakeSpec = Callable[..., Spec]


class Box(ProcessIsolation):
    """Remembers what it started, so that nothing outlives its test."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.handles: list[Handle] = []

    def start(self, spec: Spec) -> Handle:
        self.handles.append(super().start(spec))
        return self.handles[-1]


@pytest.fixture
def box(layout: Layout) -> Iterator[Box]:
    box = Box(layout.root)
    yield box
    for handle in box.handles:
        if not handle.wipe(5):
            handle.kill_hard()


def finished(handle: Handle) -> Handle:
    assert handle.finished.wait(15), "the task did not end"
    assert handle.gone.wait(5)
    return handle


def test_a_task_that_ends_reports_code_duration_and_output(
    box: ProcessIsolation, spec: MakeSpec
) -> None:
    given = spec(["/bin/sh", "-c", "echo out; echo err >&2; exit 3"])
    handle = finished(box.start(given))
    assert handle.outcome is not None
    assert (handle.outcome.cause, handle.outcome.exit_code) == ("exit", 3)
    assert (given.log_dir / "stdout").read_text() == "out\n"
    assert (given.log_dir / "stderr").read_text() == "err\n"
    assert sorted((given.log_dir / "exec.log").read_text().split()) == ["err", "out"]
    assert handle.wipe(5) and not given.workspace.exists()


@pytest.mark.parametrize(
    ("limits", "deadline_s", "cause"),
    [({"timeout_s": 0.2}, 30, "timeout"), ({}, 2, "deadline"), ({}, -1, "deadline")],
)
def test_time_limits_end_the_task_and_say_which_it_was(
    box: ProcessIsolation, spec: MakeSpec, limits: dict[str, float], deadline_s: float, cause: str,
    tmp_path: Path,
) -> None:  # fmt: skip
    ran = tmp_path / "ran"  # a workspace is wiped after its deadline
    given = spec(["/bin/sh", "-c", f"touch {ran}; sleep 60"], deadline_s=deadline_s, **limits)
    handle = finished(box.start(given))
    assert handle.outcome is not None and handle.outcome.cause == cause
    assert ran.exists() == (deadline_s > 0)


def test_at_the_deadline_the_kernel_ends_a_task_that_is_stopped_with_its_supervisor(
    box: ProcessIsolation, spec: MakeSpec, tmp_path: Path
) -> None:
    stamps = tmp_path / "stamps"
    given = spec(["/bin/sh", "-c", f"while :; do echo >> {stamps}; sleep 0.02; done"], deadline_s=2)
    handle = box.start(given)
    until(stamps.exists, "the task runs")
    supervisor = process_tree.children(os.getpid())[0]
    for pid in [*process_tree.descendants(supervisor), supervisor]:
        os.kill(pid, signal.SIGSTOP)
    assert handle.gone.wait(10), "they are still stopped"
    late = time.clock_gettime(time.CLOCK_BOOTTIME) - given.deadline
    assert late < 1.0
    assert handle.outcome is None
    # Had they been continued, the task would have gone on for as long as the supervisor needs.
    assert process_tree.descendants(os.getpid()) == []


def test_deadlines_are_kept_on_the_boot_clock_and_wake_no_sleeping_machine(
    box: ProcessIsolation, spec: MakeSpec
) -> None:
    handle = box.start(spec(["/bin/sleep", "60"]))
    until(lambda: handle.started, "the task runs")
    supervisor = Path("/proc", str(process_tree.children(os.getpid())[0]))
    timers = []
    for file in (supervisor / "fdinfo").iterdir():
        # The supervisor opens and closes other files all the time.
        with contextlib.suppress(FileNotFoundError):
            timers += [text for text in [file.read_text()] if "clockid:" in text]
    kills = (supervisor / "timers").read_text()
    assert len(timers) == 1 and "clockid: 7\n" in timers[0]
    assert kills.count("ClockID: ") == kills.count("ClockID: 7\n") == 1
    assert "signal: 9/" in kills


def test_an_extended_deadline_counts_and_a_shorter_one_does_not(
    box: ProcessIsolation, spec: MakeSpec
) -> None:
    given = spec(["/bin/sleep", "0.6"], deadline_s=0.3)
    handle = box.start(given)
    handle.extend(given.deadline + 30)
    handle.extend(given.deadline)
    assert finished(handle).outcome is not None
    assert handle.outcome is not None and handle.outcome.cause == "exit"


def test_a_flood_of_output_ends_the_task(box: ProcessIsolation, spec: MakeSpec) -> None:
    given = spec(["/usr/bin/yes"], max_output_bytes=100_000)
    handle = finished(box.start(given))
    assert handle.outcome is not None and handle.outcome.cause == "output"
    assert (given.log_dir / "stdout").stat().st_size <= 100_000


def test_too_much_memory_in_the_whole_tree_ends_the_task(
    box: ProcessIsolation, spec: MakeSpec
) -> None:
    code = "import time; x = b'x' * (300 << 20); time.sleep(60)"
    given = spec(["/bin/sh", "-c", f'"{sys.executable}" -c "{code}" & wait'], memory_mb=150)
    handle = finished(box.start(given))
    assert handle.outcome is not None and handle.outcome.cause == "memory"


def test_daemons_that_the_task_leaves_behind_are_killed(
    box: ProcessIsolation, spec: MakeSpec
) -> None:
    given = spec(
        ["/bin/sh", "-c", "(setsid sleep 600 &); setsid sh -c 'sleep 600 & wait' & sleep 0.2"]
    )
    handle = finished(box.start(given))
    assert handle.outcome is not None and handle.outcome.cause == "exit"
    assert len(process_tree.descendants(os.getpid())) == 1  # the supervisor


def test_500_processes_in_three_sessions_are_dead_within_a_second(
    box: ProcessIsolation, spec: MakeSpec
) -> None:
    branch = "i=0; while [ $i -lt 165 ]; do sleep 600 & i=$((i+1)); done; wait"
    given = spec(["/bin/sh", "-c", f"for s in 1 2 3; do setsid sh -c '{branch}' & done; wait"])
    handle = box.start(given)
    until(lambda: len(process_tree.descendants(os.getpid())) > 498, "500 processes", 30)
    began = time.monotonic()
    handle.kill()
    assert handle.gone.wait(5)
    assert time.monotonic() - began < 1.0
    assert handle.outcome is not None and handle.outcome.cause == "killed"


def test_a_stopped_supervisor_does_not_save_its_task(box: ProcessIsolation, spec: MakeSpec) -> None:
    handle = box.start(spec(["/bin/sh", "-c", "setsid sleep 600 & sleep 600"]))
    until(lambda: len(process_tree.descendants(os.getpid())) >= 3, "the task")
    pid = process_tree.children(os.getpid())[0]
    os.kill(pid, signal.SIGSTOP)
    handle.kill()
    assert not handle.gone.wait(0.1)
    handle.kill_hard()
    assert handle.gone.is_set() and process_tree.descendants(os.getpid()) == []


def test_a_killed_supervisor_leaves_no_orphan(box: ProcessIsolation, spec: MakeSpec) -> None:
    handle = box.start(spec(["/bin/sh", "-c", "setsid env -i sleep 600 & sleep 600"]))
    until(lambda: len(process_tree.descendants(os.getpid())) >= 3, "the task")
    os.kill(process_tree.children(os.getpid())[0], signal.SIGKILL)
    assert handle.finished.wait(5) and handle.outcome is None
    assert process_tree.descendants(os.getpid()) == []


def launch(spec: Spec) -> tuple[subprocess.Popen[bytes], socket.socket]:
    body = {**asdict(spec), "cwd": str(spec.cwd), "workspace": str(spec.workspace)}
    ours, theirs = socket.socketpair()
    with theirs:
        process = subprocess.Popen(
            [sys.executable, "-ISE", str(PROGRAM)], stdin=theirs.fileno(), stdout=theirs.fileno(),
            start_new_session=True,
        )  # fmt: skip
    ours.sendall(json.dumps({**body, "log_dir": str(spec.log_dir)}).encode() + b"\n")
    return process, ours


def test_the_end_of_the_agent_ends_the_task_and_wipes_its_workspace(spec: MakeSpec) -> None:
    given = spec(["/bin/sh", "-c", "echo $$ > pid; sleep 600"])
    process, line = launch(given)
    until(lambda: (given.cwd / "pid").exists() and (given.cwd / "pid").read_text(), "the task")
    pid = int((given.cwd / "pid").read_text())
    line.close()  # as death does
    process.wait(10)
    assert not process_tree.is_alive(pid) and not given.workspace.exists()


def test_a_lease_that_is_over_leaves_no_workspace_even_if_the_agent_is_silent(
    spec: MakeSpec,
) -> None:
    """Contract: C5."""
    given = spec(["/bin/sleep", "600"], deadline_s=0.5)
    process, line = launch(given)
    until(lambda: not given.workspace.exists(), "the workspace is gone")
    with line:
        line.sendall(b'{"wipe": true}\n')
        process.wait(10)


def test_an_agent_that_reads_nothing_does_not_block_the_deadline(spec: MakeSpec) -> None:
    note = r"""
import os
while True:
    os.write(int(os.environ["RAE_PROGRESS_FD"]), b'{"pct": 1, "note": "x"}\n')
"""
    given = spec([sys.executable, "-c", note], deadline_s=1.0)
    object.__setattr__(given, "progress", True)
    process, line = launch(given)
    until(lambda: process_tree.descendants(process.pid), "the start")
    until(lambda: not process_tree.descendants(process.pid), "the deadline")
    with line, line.makefile("rb") as said:
        line.sendall(b'{"wipe": true}\n')
        output = said.read()
    process.wait(10)
    assert b'"cause": "deadline"' in output


def test_a_program_that_was_replaced_after_the_check_does_not_run(
    box: ProcessIsolation, spec: MakeSpec, tmp_path: Path
) -> None:
    program = tmp_path / "program"
    program.write_text("#!/bin/sh\necho checked\n")
    program.chmod(0o755)
    given = replace(spec([str(program)]), identity=identity(program))
    handle = finished(box.start(given))
    assert (given.log_dir / "stdout").read_text() == "checked\n"
    other = tmp_path / "other"
    other.write_text("#!/bin/sh\necho another\n")
    other.chmod(0o755)
    other.rename(program)
    again = replace(spec([str(program)]), identity=given.identity)
    handle = finished(box.start(again))
    assert handle.outcome is not None and handle.outcome.cause == "replaced"
    assert not handle.started and (again.log_dir / "stdout").read_text() == ""


@pytest.mark.parametrize(
    ("limits", "problem"),
    [
        ({"memory_mb": 1e6, "spare_memory_mb": 1e12}, "nearly out of memory"),
        ({"disk_bytes": 1 << 40, "spare_disk_mb": 1e12}, "disk was nearly full"),
    ],
)
def test_what_no_watch_sees_ends_before_the_machine_is_out_of_it(
    box: ProcessIsolation, spec: MakeSpec, limits: dict[str, float], problem: str
) -> None:
    handle = finished(box.start(spec(["/bin/sleep", "60"], **limits)))
    assert handle.outcome is not None and handle.outcome.cause == "short"
    assert handle.outcome.problem is not None and problem in handle.outcome.problem


@pytest.mark.parametrize(
    ("used", "before", "left", "its_own"),
    [
        (600, 800, 200, True),
        (300, 800, 200, True),
        (200, 800, 200, False),  # others took more
        (100, 300, 100, False),  # without it there would still be too little
        (0, 200, 200, False),
        (600, 400, 200, True),  # others made room meanwhile
    ],
)
def test_a_task_that_took_most_of_what_the_machine_had_left_is_the_cause(
    used: float, before: float, left: float, *, its_own: bool
) -> None:
    assert is_its_doing(used, before, left, spare=256) is its_own


def test_every_task_has_limits_of_addresses_files_core_and_processes(
    box: ProcessIsolation, spec: MakeSpec
) -> None:
    names = ("AS", "CORE", "FSIZE", "NOFILE", "NPROC", "MEMLOCK")
    code = f"import resource as r; print([r.getrlimit(getattr(r, 'RLIMIT_' + n)) for n in {names}])"
    given = spec([sys.executable, "-c", code])
    finished(box.start(given))
    limits = ast.literal_eval((given.log_dir / "stdout").read_text())
    assert all(soft == hard >= 0 for soft, hard in limits), dict(zip(names, limits, strict=True))
