"""What the owner sees of an agent that takes no task."""

from __future__ import annotations

import pytest

from rae_node.cli import main
from rae_node.config.layout import Layout, socket_path
from rae_node.owner.socket import ask
from tests.integration.node.harness import MakeRig, remote
from tests.until import until


def test_too_weak_isolation_takes_no_task_and_says_so(make_rig: MakeRig, layout: Layout) -> None:
    rig = make_rig(min_isolation="bubblewrap")
    until(lambda: len(rig.control.of("heartbeat")) > 1, "heartbeats")
    assert not rig.control.of("poll")
    assert ask(socket_path(layout.root), {"verb": "status"})["reasons"] == ["isolation_too_weak"]


def test_status_says_in_words_why_no_task_is_taken(
    make_rig: MakeRig, layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    rig = make_rig(
        min_isolation="unit",
        runtime={"safety": {"cooldown_minutes": 60}},
        control=None,
    )
    until(rig.agent.link.ready.is_set, "the registration")
    rig.agent.guard.begin_cooldown()
    rig.agent.guard.look_now(0.0, 5)
    rig.control.fail["*"] = remote("not_enrolled")
    until(lambda: not rig.agent.link.ready.is_set(), "the session's end")
    rig.agent.draining = True
    words = " / ".join(ask(socket_path(layout.root), {"verb": "status"})["no_task_because"])
    for part in ("below min_isolation 'unit'", "cooldown", "operator drains", "not_enrolled"):
        assert part in words
    rig.agent.context.pause.set(None)
    rig.agent.guard.look_now(0.0, 5)
    shown = ask(socket_path(layout.root), {"verb": "status"})
    assert "the owner paused this node" in shown["no_task_because"][0] and not shown["taking_work"]
    assert main(["status", "--root", str(layout.root)]) == 0
    assert "no task: the owner paused this node" in capsys.readouterr().out


def test_status_answers_although_the_pause_file_is_broken(
    make_rig: MakeRig, layout: Layout
) -> None:
    (layout.run / "pause.json").write_text("{")
    make_rig()
    shown = ask(socket_path(layout.root), {"verb": "status"})
    assert (shown["availability"], shown["paused_until"]) == ("paused", 0)
