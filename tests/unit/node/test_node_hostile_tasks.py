"""Tasks that damage what they can reach: the failure is theirs, never the node's."""

from __future__ import annotations

import os
import socket
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rae_node.agent import startup
from rae_node.attempt.download import fetch_url
from rae_node.attempt.inputs import Inputs
from rae_node.config.layout import Layout, socket_path
from rae_node.errors import TaskFailure
from rae_node.isolation.base import ProcessIsolation, Spec
from rae_node.owner.verbs import open_door
from rae_node.supervisor import process_tree
from rae_node.telemetry.log import EventLog
from rae_node.workspace.workspace import Workspace, inline_bytes
from rae_protocol.abort import Aborter
from rae_protocol.models import LeasedInput, LeaseRef
from tests.unit.node.fakes import FAST, MACHINE, Rig, until

MakeRig = Callable[..., Rig]
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


def test_wiping_a_workspace_that_is_a_link_leaves_its_target_as_it_was(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("keep")
    precious.chmod(0o750)
    link, file = tmp_path / "link", tmp_path / "plain"
    link.symlink_to(precious)
    file.write_text("x")
    for path in (link, file):
        process_tree.wipe(str(path))
        assert not os.path.lexists(path)
    assert mode(precious) == 0o750 and (precious / "file").read_text() == "keep"


def test_wiping_changes_no_mode_through_a_link_deeper_in_the_tree(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    precious.chmod(0o750)
    inner = tmp_path / "workspace" / "a" / "b"
    inner.mkdir(parents=True)
    for folder in (inner, inner.parent, inner.parent.parent):
        (folder / "link").symlink_to(precious)
    inner.chmod(0)
    process_tree.wipe(str(tmp_path / "workspace"))
    assert mode(precious) == 0o750 and not (tmp_path / "workspace").exists()


def test_agent_and_supervisor_may_wipe_the_same_workspace_at_the_same_time(tmp_path: Path) -> None:
    folder = tmp_path / "workspace"
    for number in range(300):
        (folder / str(number) / "a" / "b").mkdir(parents=True)
    with ThreadPoolExecutor(4) as pool:
        for done in [pool.submit(process_tree.wipe, str(folder)) for _ in range(4)]:
            done.result(30)
    assert not folder.exists()


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


def test_what_a_task_left_beside_its_workspace_goes_at_the_next_start(
    layout: Layout, tmp_path: Path, quiet_log: EventLog
) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    precious.chmod(0o750)
    (layout.workdir / "t.1.moved" / "deep").mkdir(parents=True)
    (layout.workdir / "t.2").symlink_to(precious)
    startup.end_predecessors(layout, 5.0, quiet_log, ProcessIsolation(layout.root))
    assert not list(layout.workdir.iterdir()) and mode(precious) == 0o750


@pytest.mark.parametrize("encoding", ["base64", "text"])
def test_an_inline_input_that_cannot_be_decoded_is_the_tasks_failure(encoding: str) -> None:
    given = LeasedInput.model_construct(inline="\u00e9\udcff", encoding=encoding)
    with pytest.raises(TaskFailure, match=f"Input 'a' is not valid {encoding}") as caught:
        inline_bytes("a", given)
    assert caught.value.rc == "E_INPUT"


def test_a_malformed_url_is_the_tasks_failure(tmp_path: Path) -> None:
    with pytest.raises(TaskFailure, match="a URL is http") as caught:
        fetch_url("a", "http://[::1", tmp_path / "a", ["::1"], 10, 1.0, lambda _: None)
    assert caught.value.rc == "E_INPUT"


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


def test_an_unexpected_error_after_the_start_is_told_as_the_tasks_loss(
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


def test_reading_logs_never_waits_for_a_pipe_nor_follows_a_link(layout: Layout) -> None:
    workspace = Workspace.create(layout.workdir, "t", 1)
    os.mkfifo(workspace.logs / "exec.log")
    (workspace.logs / "stdout").symlink_to("/etc/passwd")
    assert workspace.tail(10) == "" and workspace.head("stdout", 10) == ("", False)
    assert not workspace.has_logs()


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
