"""Tasks that the node hands back: to its owner, or because of its own fault."""

from __future__ import annotations

import errno
import os
import time
from pathlib import Path
from typing import Any

import pytest

from rae_node.config.layout import Layout, socket_path
from rae_node.isolation import base
from rae_node.owner.socket import ask
from tests.integration.node.harness import SLEEP, MakeRig, listing, start
from tests.until import until


def test_the_owners_return_stops_everything_at_once_and_hands_it_back(make_rig: MakeRig) -> None:
    rig = make_rig(max_concurrent_cpu=2)
    first = start(rig)
    second = rig.control.give(params=SLEEP, slot="cpu1")
    until(lambda: sum(run.alive() for run in rig.agent.runs()) == 2, "both run")
    rig.owner.present = True
    rig.agent.guard.wake()
    until(lambda: len(rig.control.of("yield")) == 2, "both are handed back")
    for task_id, reason, detail, ms in rig.control.of("yield"):
        assert task_id in {first.task_id, second.task_id}
        assert (reason, detail) == ("owner", "owner_active") and 0 <= ms < 1000
    until(
        lambda: "owner" in {beat.availability.value for beat in rig.control.of("heartbeat")},
        "control knows",
    )
    polls = len(rig.control.of("poll"))
    rig.agent.poller.wake()
    assert rig.control.of("poll")[polls:] in ([], [()])


def test_pause_answers_when_nothing_lives_any_more(make_rig: MakeRig, layout: Layout) -> None:
    rig = make_rig()
    start(rig)
    began = time.monotonic()
    answer = ask(socket_path(layout.root), {"verb": "pause", "duration_s": 3600})
    assert time.monotonic() - began < 1.0
    assert answer["stopped"] == 1 and answer["stopped_ms"] < 1000 and not rig.running()
    assert until(lambda: rig.control.of("yield"), "the hand-back")[0][1] == "paused"
    shown = ask(socket_path(layout.root), {"verb": "status"})
    assert (shown["availability"], shown["taking_work"]) == ("paused", False)
    assert ask(socket_path(layout.root), {"verb": "resume"})["availability"] == "open"
    assert rig.run()[0].status == "succeeded"


def test_a_task_that_arrives_after_the_owner_is_handed_back_unacked(make_rig: MakeRig) -> None:
    rig = make_rig()
    until(lambda: rig.control.of("poll"), "a poll")
    task = rig.control.give(slot="cpu7")  # no poll asks for it: given by hand below
    rig.owner.present = True
    rig.agent.guard.look_now(0.0, 5)
    rig.agent._take(task, rig.agent.slots.epoch)
    found = until(lambda: rig.control.of("yield"), "the hand-back")
    assert found[0][:2] == (task.task_id, "owner") and not rig.control.of("ack")


def test_the_cooldown_counts_from_the_last_moment_of_presence(make_rig: MakeRig) -> None:
    """Contract: B1."""
    rig = make_rig(runtime={"safety": {"cooldown_minutes": 0.05}})
    until(lambda: rig.agent.guard.decision.may_poll, "the node is free")
    rig.owner.present = True
    until(lambda: not rig.agent.guard.decision.safe, "the owner is seen")
    tripped = time.monotonic()
    until(lambda: time.monotonic() - tripped > 3.1, "a game that lasts longer than the cooldown")
    rig.agent.guard.look_now(0, 10)
    rig.owner.present = False
    rig.agent.guard.look_now(0, 10)
    assert rig.agent.guard.decision.reasons == ("cooldown",)
    until(lambda: rig.agent.guard.decision.may_poll, "the cooldown is over")


@pytest.mark.parametrize("why", ["input of a while ago", "a pause"])
def test_only_fresh_presence_restarts_the_cooldown(make_rig: MakeRig, why: str) -> None:
    """Contract: B1."""
    rig = make_rig(runtime={"safety": {"cooldown_minutes": 0.05}})
    until(lambda: rig.agent.guard.decision.may_poll, "the node is free")
    if why == "a pause":
        rig.agent.context.pause.set(None)
    else:
        rig.owner.age_s = 100.0
        rig.owner.present = True
    rig.agent.guard.look_now(0, 10)
    assert not rig.agent.guard.decision.safe and rig.agent.guard.cooldown_left_s() > 0
    until(lambda: rig.agent.guard.cooldown_left_s() == 0, "the cooldown is over")
    rig.agent.guard.look_now(0, 10)
    assert not rig.agent.guard.decision.safe and rig.agent.guard.cooldown_left_s() == 0


def test_the_cooldown_follows_a_guard_trip(make_rig: MakeRig) -> None:
    """Contract: B1."""
    rig = make_rig(runtime={"safety": {"cooldown_minutes": 60}})
    start(rig)
    rig.owner.present = True
    rig.agent.guard.look_now(0.0, 5)
    rig.owner.present = False
    rig.agent.guard.look_now(0.0, 5)
    decision = rig.agent.guard.decision
    assert (decision.safe, decision.may_poll, decision.reasons) == (True, False, ("cooldown",))
    assert rig.agent.guard.cooldown_left_s() > 3500


def test_a_supervisor_that_dies_before_it_starts_the_task_is_the_nodes_fault(
    make_rig: MakeRig, layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "broken.py"
    program.write_text("raise SystemExit(3)")
    monkeypatch.setattr(base, "PROGRAM", program)
    rig = make_rig()
    rig.control.give(params=SLEEP)
    assert until(lambda: rig.control.of("yield"), "the hand-back")[0][1] == "infrastructure"
    until(lambda: not listing(layout.workdir), "the workspace is wiped")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS])
def test_a_task_is_dead_before_it_is_handed_back_when_the_disk_failed(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    rig = make_rig()
    alive_at_yield: list[bool] = []
    tell = rig.control.yield_task
    monkeypatch.setattr(
        rig.control, "yield_task", lambda *a: (alive_at_yield.append(rig.running()), tell(*a))
    )
    start(rig)

    def broken(*_: Any) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(rig.agent.runs()[0], "_send_log", broken)
    assert until(lambda: rig.control.of("yield"), "the hand-back")[0][1] == "infrastructure"
    assert alive_at_yield == [False] and not rig.running()
