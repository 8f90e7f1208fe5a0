"""Tasks that damage what they can reach: the failure is theirs, never the node's."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rae_node.attempt.inputs import Inputs
from rae_node.config.layout import Layout, socket_path
from rae_node.isolation.base import ProcessIsolation, Spec
from rae_node.owner.verbs import open_door
from rae_node.runners.base import TaskFailure
from rae_node.supervisor import process_tree
from rae_node.workspace.workspace import Workspace
from rae_protocol.abort import Aborter
from rae_protocol.models import LeasedInput, LeaseRef
from tests.integration.node.harness import FAST, MakeRig, Rig
from tests.unit.node.harness import MACHINE
from tests.until import until

FILE = {"artifacts": [{"name": "a.bin"}]}
HEAD = "import os, shutil, signal, time\ndef run(ctx):\n top = ctx.work.parent\n"


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


def run_task(make_rig: MakeRig, tmp_path: Path, body: str, **more: Any) -> tuple[Any, Rig]:
    """The result of a trusted python task with this body, from a node that must not be blamed."""
    folder = tmp_path / "trusted"
    folder.mkdir()
    (folder / "t.py").write_text(HEAD + "".join(f" {line}\n" for line in body.split("\n")))
    rig = make_rig(tasks=[folder])
    result, _ = rig.run("python", params={"task": "t"}, **more)
    assert not rig.control.of("yield")
    until(lambda: not list(rig.agent.context.layout.workdir.iterdir()), "the workspace is wiped")
    return result, rig


def test_a_task_cannot_change_a_folder_by_putting_a_link_in_place_of_its_workspace(
    make_rig: MakeRig, tmp_path: Path
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    precious.chmod(0o750)
    body = f"shutil.rmtree(top)\nos.symlink({str(precious)!r}, top)"
    result, _ = run_task(make_rig, tmp_path, body)
    assert result.status == "failed" and result.error.code == "E_ARTIFACT"
    assert mode(precious) == 0o750 and list(precious.iterdir()) == []


@pytest.mark.parametrize(
    "inputs",
    [
        {"a": {"inline": "\u00e9\u00e9\u00e9\u00e9", "encoding": "base64"}},
        {"a": {"url": "http://[::1"}},
        {"a": {"inline": "x"}, "a/b": {"inline": "y"}},
    ],
)
def test_inputs_that_cannot_be_never_count_against_the_node(
    make_rig: MakeRig, inputs: dict[str, Any]
) -> None:
    rig = make_rig()
    result, _ = rig.run(inputs=inputs)
    assert result.error is not None and result.error.code == "E_INPUT"
    assert not rig.control.of("yield")


def test_many_names_of_one_input_fill_no_disk_and_count_against_no_node(
    make_rig: MakeRig,
) -> None:
    rig = make_rig(settings=replace(FAST, workspace_max_mb=0.01))
    result, _ = rig.run(inputs={f"f{number}": {"inline": "x" * 1000} for number in range(50)})
    assert result.error is not None and result.error.code == "E_INPUT"
    assert "'f10' the inputs exceed 0.01 MiB" in result.error.message
    assert not rig.control.of("yield")


def test_a_task_that_ends_because_the_machine_is_short_of_memory_is_no_mark_against_the_node(
    make_rig: MakeRig,
) -> None:
    rig = make_rig(machine=replace(MACHINE, memory_mb=1e9))  # of which 5 % are never left
    rig.control.give(params={"command": "sleep", "args": ["30"]})
    _, reason, detail, *_ = until(lambda: rig.control.of("yield"), "the hand-back")[0]
    assert reason == "guard" and "nearly out of memory" in detail


def test_inputs_leave_the_disk_its_reserve(make_rig: MakeRig, layout: Layout) -> None:
    agent = make_rig(start=False).agent
    context = replace(agent.context, settings=replace(FAST, disk_low_mb=1e12))
    lease = LeaseRef(task_id="t", attempt=1, lease_id="0" * 16)
    inputs = Inputs(context, agent.link, lease, Aborter(), lambda: None, 1.0, (1.0, "timeout_s"))
    workspace = Workspace.create(layout.workdir, "t", 1)
    with pytest.raises(TaskFailure, match="disk had less than") as caught:
        inputs.fetch({"a": LeasedInput(inline="x")}, workspace)
    assert caught.value.rc == "E_INPUT" and not list(workspace.input.iterdir())


@pytest.mark.parametrize("more", [{}, FILE])
@pytest.mark.parametrize(
    "body",
    [
        "shutil.rmtree(top)",
        "shutil.rmtree(top)\ntime.sleep(0.7)",  # the disk is looked at meanwhile
        "shutil.rmtree(top / 'logs')",
        "shutil.rmtree(top / 'logs')\n(top / 'logs').write_text('x')",
        "shutil.rmtree(top / 'logs')\nos.symlink('/etc', top / 'logs')",
        "os.unlink(top / 'logs' / 'exec.log')\nos.mkfifo(top / 'logs' / 'exec.log')",
    ],
)
def test_a_task_that_damages_its_logs_fails_with_e_artifact(
    make_rig: MakeRig, tmp_path: Path, body: str, more: dict[str, Any]
) -> None:
    result, _ = run_task(make_rig, tmp_path, body, **more)
    assert result.error is not None and result.error.code == "E_ARTIFACT"
    assert "its own logs/" in result.error.message


@pytest.mark.parametrize(
    "body",
    [
        "shutil.rmtree(top / 'output')",
        "shutil.rmtree(top / 'output')\nos.symlink('/etc', top / 'output')",
        "shutil.rmtree(top / 'output')\n(top / 'output').write_text('x')",
    ],
)
@pytest.mark.parametrize("more", [{}, FILE])
def test_a_task_that_damages_its_output_folder_lacks_only_its_artifacts(
    make_rig: MakeRig, tmp_path: Path, body: str, more: dict[str, Any]
) -> None:
    result, _ = run_task(make_rig, tmp_path, body + "\nreturn 1", **more)
    if more:
        assert result.error is not None and result.error.code == "E_ARTIFACT"
    else:
        assert (result.status, result.result) == ("succeeded", 1)


def test_a_task_that_kills_its_supervisor_fails_itself_and_nothing_of_it_lives(
    make_rig: MakeRig, tmp_path: Path
) -> None:
    body = "if os.fork() == 0: os.setsid(); os.execv('/bin/sleep', ['sleep', '600'])\n"
    result, _ = run_task(make_rig, tmp_path, body + "os.kill(os.getppid(), 9)\nsignal.pause()")
    assert result.status == "failed" and result.error is not None
    assert result.error.code == "E_LOST"
    assert "supervisor of this task was killed" in result.error.message
    assert process_tree.descendants(os.getpid()) == []


def test_a_program_that_kills_its_supervisor_at_once_has_been_reported_as_started(
    layout: Layout, spec: Callable[..., Spec]
) -> None:
    for _ in range(5):
        handle = ProcessIsolation(layout.root).start(spec(["/bin/sh", "-c", "kill -9 $PPID"]))
        assert handle.gone.wait(10) and handle.started and handle.outcome is None


def test_a_task_that_asks_its_supervisor_to_end_goes_on(make_rig: MakeRig, tmp_path: Path) -> None:
    result, _ = run_task(make_rig, tmp_path, "os.kill(os.getppid(), signal.SIGTERM)\nreturn 1")
    assert (result.status, result.result) == ("succeeded", 1)


def test_progress_with_a_number_beyond_all_floats_does_not_end_the_supervisor(
    make_rig: MakeRig, tmp_path: Path
) -> None:
    body = (
        "line = '{\"pct\": 1' + '0' * 400 + ', \"note\": \"\"}\\n'\n"
        "os.write(ctx.progress_fd, line.encode() + b'[' * 3000 + b'\\n')\nreturn 1"
    )
    result, _ = run_task(make_rig, tmp_path, body)
    assert (result.status, result.result) == ("succeeded", 1)


def test_who_holds_the_dead_supervisors_line_does_not_hold_up_the_agent(
    layout: Layout, spec: Callable[..., Spec]
) -> None:
    stolen = """
import ctypes, os, signal
line = ctypes.CDLL(None).syscall(438, os.pidfd_open(os.getppid()), 1, 0)  # pidfd_getfd(2)
if line >= 0:
    os.set_inheritable(line, True)
if os.fork() == 0:
    os.setsid()
    os.execv("/bin/sleep", ["sleep", "600"])
os.kill(os.getppid(), signal.SIGKILL)
"""
    handle = ProcessIsolation(layout.root).start(spec([sys.executable, "-c", stolen]))
    assert handle.gone.wait(10) and process_tree.descendants(os.getpid()) == []


def test_an_unexpected_error_after_the_start_is_reported_as_the_tasks_loss(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(*_: Any) -> None:
        raise RuntimeError("odd \udcff")

    rig = make_rig()
    rig.control.give(params={"command": "sleep", "args": ["600"]})
    handle = until(lambda: [run._handle for run in rig.agent.runs() if run._handle], "a handle")[0]
    until(lambda: handle.started, "the start")
    monkeypatch.setattr(rig.agent.runs()[0], "_send_log", broken)
    result, _ = rig.outcome()
    assert result.error is not None and result.error.code == "E_LOST"
    assert "RuntimeError: odd" in result.error.message
    assert not rig.control.of("yield") and not rig.running()


@pytest.mark.parametrize(
    ("request_bytes", "words"),
    [
        (b"", "this one is empty"),
        (b'{"verb"', "this one broke off"),
        (b"x" * 200_000 + b"\n", "this one is longer"),
        (b"x" * 200_000, "this one is longer"),
        (b"\n", "send one of"),
        (b"[" * 60_000 + b"\n", "send one of"),
    ],
)
def test_the_local_socket_tells_what_a_request_must_look_like(
    make_rig: MakeRig, layout: Layout, request_bytes: bytes, words: str
) -> None:
    door = open_door(make_rig(start=False).agent)
    door.start()
    try:
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as client:
            client.settimeout(10)
            client.connect(str(socket_path(layout.root)))
            client.sendall(request_bytes)
            client.shutdown(socket.SHUT_WR)
            answer = b"".join(iter(lambda: client.recv(4096), b"")).decode()
    finally:
        door.close()
    assert '"rc": "invalid_request"' in answer and words in answer
