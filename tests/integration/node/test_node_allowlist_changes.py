"""What the owner changes in allowlist.d counts while the agent runs, and control learns of it."""

from __future__ import annotations

from pathlib import Path

import pytest

from rae_node.config.layout import Layout, socket_path
from rae_node.errors import NodeError
from rae_node.owner.socket import ask
from rae_node.runners.cli import AllowFolders
from tests.integration.node.harness import MakeRig, Rig
from tests.until import until

UNAME = "- path: /usr/bin/uname\n  args: [['-s']]\n"


@pytest.fixture
def lists(layout: Layout) -> Path:
    folder = layout.agent / "allowlist.d"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def code_of(rig: Rig) -> str | None:
    """How a task that runs uname ends: its error's code, None when it succeeds."""
    result, _ = rig.run("cli", params={"command": "uname", "args": ["-s"]})
    return result.error.code if result.error else None


def test_an_entry_counts_while_the_agent_runs_and_ends_with_its_file(
    make_rig: MakeRig, layout: Layout, lists: Path
) -> None:
    rig = make_rig()
    assert code_of(rig) == "E_DENY"
    (lists / "own.yaml").write_text(UNAME)
    rig.agent.look_at_files()
    until(lambda: len(rig.control.of("register")) == 2, "control learns of the new command")
    assert "uname" in rig.control.of("register")[1].capabilities.commands
    assert code_of(rig) is None
    (lists / "own.yaml").unlink()
    rig.agent.look_at_files()
    until(lambda: len(rig.control.of("register")) == 3, "control learns that it has gone")
    assert "uname" not in rig.control.of("register")[2].capabilities.commands
    assert code_of(rig) == "E_DENY"
    assert "uname" not in ask(socket_path(layout.root), {"verb": "status"})["commands"]


def test_a_file_with_an_error_leaves_the_former_list_in_force_and_the_owner_sees_it(
    make_rig: MakeRig, layout: Layout, lists: Path
) -> None:
    (lists / "own.yaml").write_text(UNAME)
    rig = make_rig()
    (lists / "own.yaml").write_text("- path: 5\n")
    rig.agent.look_at_files()
    assert code_of(rig) is None
    assert "own.yaml" in ask(socket_path(layout.root), {"verb": "status"})["files"]
    assert len(rig.control.of("register")) == 1


def test_nothing_is_read_again_while_no_file_changes(lists: Path) -> None:
    (lists / "own.yaml").write_text(UNAME)
    allowed = AllowFolders([lists])
    assert allowed.look() is None
    (lists / "readme.txt").write_text("not a list")
    assert allowed.look() is None


def test_a_program_that_no_box_can_show_is_rejected_before_it_is_offered(lists: Path) -> None:
    allowed = AllowFolders([lists])

    def refuse(programs: list[Path]) -> None:
        raise NodeError("not_shown", f"a box cannot show {programs[0]}; move it")

    allowed.check_programs = refuse
    (lists / "own.yaml").write_text(UNAME)
    assert allowed.look() == "rejected"
    assert allowed.problem is not None and "/usr/bin/uname" in allowed.problem
    assert allowed.entries == ()
