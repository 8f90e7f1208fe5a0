"""Tasks that damage what they can reach: the failure is theirs, never the node's."""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from rae_node.agent import startup
from rae_node.attempt.download import fetch_url
from rae_node.config.layout import Layout
from rae_node.errors import TaskFailure
from rae_node.isolation.base import ProcessIsolation
from rae_node.supervisor import process_tree
from rae_node.telemetry.log import EventLog
from rae_node.workspace.workspace import Workspace, inline_bytes
from rae_protocol.models import LeasedInput


def mode(path: Path) -> int:
    return path.stat().st_mode & 0o777


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


def test_reading_logs_never_waits_for_a_pipe_nor_follows_a_link(layout: Layout) -> None:
    workspace = Workspace.create(layout.workdir, "t", 1)
    os.mkfifo(workspace.logs / "exec.log")
    (workspace.logs / "stdout").symlink_to("/etc/passwd")
    assert workspace.tail(10) == "" and workspace.head("stdout", 10) == ("", False)
    assert not workspace.has_logs()
