"""`rae-node why` and `rae-node history`: what blocks, since when, what ends it, what happened."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rae_node import cli
from rae_node.config.layout import socket_path
from rae_node.errors import NodeError
from rae_node.guard.causes import follow, found_in
from rae_node.guard.policy import Holder, Reading, Rules
from rae_node.owner import history, why
from rae_node.owner.socket import ask
from rae_protocol.errors import Unreachable
from tests.integration.node.harness import MakeRig
from tests.until import until

RULES = Rules(True, True, {"cpu_percent": 80.0})


def test_a_control_that_has_stopped_answering_is_a_cause_until_it_answers(
    make_rig: MakeRig,
) -> None:
    rig = make_rig()
    until(rig.agent.link.ready.is_set, "the node is registered")
    rig.control.fail["heartbeat"] = Unreachable("http://c did not answer")
    rig.agent.link.beat_now()
    until(lambda: rig.agent.link.silence != "", "a heartbeat failed")
    answer = ask(socket_path(rig.agent.context.layout.root), {"verb": "why"})
    (cause,) = answer["causes"]
    assert (cause["code"], answer["takes_work"]) == ("control_unreachable", False)
    assert "http://c did not answer" in cause["who"]
    del rig.control.fail["heartbeat"]
    rig.agent.link.beat_now()
    until(lambda: rig.agent.link.silence == "", "a heartbeat was answered")
    assert ask(socket_path(rig.agent.context.layout.root), {"verb": "why"})["takes_work"]


def test_why_says_what_blocks_since_when_and_when_work_may_begin(
    make_rig: MakeRig,
) -> None:
    rig = make_rig(runtime={"safety": {"cooldown_minutes": 10}})
    until(rig.agent.link.ready.is_set, "the node is registered")
    answer = ask(socket_path(rig.agent.context.layout.root), {"verb": "why"})
    assert answer["takes_work"] and answer["work_in_s"] == 0 and not answer["causes"]
    rig.owner.present = True
    until(lambda: not rig.agent.guard.decision.safe, "the owner is seen")
    rig.agent.context.pause.set(3600)
    rig.agent.guard.look_now(0, 10)
    answer = ask(socket_path(rig.agent.context.layout.root), {"verb": "why"})
    assert not answer["takes_work"] and answer["work_in_s"] is None
    by_code = {cause["code"]: cause for cause in answer["causes"]}
    assert set(by_code) == {"paused", "owner_active", "cooldown"}
    assert 3590 < by_code["paused"]["ends_in_s"] <= 3600
    assert by_code["owner_active"]["ends_in_s"] is None and by_code["owner_active"]["stops_work"]
    assert not by_code["cooldown"]["stops_work"]
    rig.owner.present = False
    rig.agent.guard.look_now(0, 10)
    answer = ask(socket_path(rig.agent.context.layout.root), {"verb": "why"})
    assert 3590 < answer["work_in_s"] <= 3600
    lines = list(why.in_lines(answer, 1_780_000_000.0))
    assert lines[0] == "this machine does not work, because"
    assert any(
        line.startswith("- the owner paused this node [pause: paused, since ") for line in lines
    )
    assert "what ends it: `rae-node resume`" in "\n".join(lines)
    assert lines[-1].startswith("work may begin in 60 min, at ")


def test_while_a_task_runs_why_names_it_and_what_keeps_others_away(
    make_rig: MakeRig,
) -> None:
    rig = make_rig()
    rig.control.give(params={"command": "sleep", "args": ["30"]}, slot="cpu0")
    until(rig.agent.runs, "the task runs")
    answer = ask(socket_path(rig.agent.context.layout.root), {"verb": "why"})
    (task_id,) = answer["working"]
    lines = list(why.in_lines(answer, 0.0))
    assert lines[:2] == [f"working: {task_id}", "this machine takes no new task, because"]
    assert "- every slot is taken [agent: no_slot]" in lines


def test_history_shows_tasks_decisions_and_the_owner_coming_back(
    make_rig: MakeRig, capsys: pytest.CaptureFixture[str]
) -> None:
    rig = make_rig()
    rig.control.give(params={"command": "sleep", "args": ["30"]}, slot="cpu0")
    until(rig.agent.runs, "the task runs")
    rig.owner.present = True
    until(lambda: not rig.agent.runs(), "it was given back")
    root = str(rig.agent.context.layout.root)
    assert cli.main(["history", "--root", root]) == 0
    lines = [line[12:] for line in capsys.readouterr().out.splitlines() if line[:2] == "  "]
    begins = next(line for line in lines if "(cli) begins on cpu0" in line)
    task = begins.split()[1]
    assert "the agent starts" in lines and "free: this machine takes work" in lines
    stop = next(line for line in lines if "1 task was stopped" in line)
    assert stop.startswith("no work: ")
    back = f"task {task} was given back"
    assert lines.index(begins) < lines.index(stop) < lines.index(back), "cause before effect"
    assert cli.main(["history", "--root", root, "--json", "--count", "1"]) == 0
    (entry,) = json.loads(capsys.readouterr().out)
    assert entry["event"] == "task_ends" and entry["ending"] == "owner"


@pytest.mark.parametrize("count", [0, -1, 10_001, True, "5", None])
def test_a_wrong_count_of_entries_is_refused(make_rig: MakeRig, count: Any) -> None:
    rig = make_rig()
    with pytest.raises(NodeError, match="whole number"):
        ask(socket_path(rig.agent.context.layout.root), {"verb": "history", "count": count})


def test_a_program_s_name_writes_to_no_terminal(make_rig: MakeRig) -> None:
    evil = "\x1b[2J\x9b1mnothing stands against work\n" + "x" * 100_000
    reading = Reading("gpu", True, "foreign_gpu_process", holders=(Holder("g", evil, evil),))
    (cause,) = follow((), found_in(RULES, [reading], {}), 0.0)
    assert cause.holder.who.isprintable() and cause.holder.ends.isprintable()
    assert len(cause.holder.who) <= 500
    old = {"ts": "2026-01-10T12:00:00.000+00:00", "event": "agent", "text": evil}
    assert all(line.isprintable() for line in history.in_lines([old]))
