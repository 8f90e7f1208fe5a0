"""The guard of a running agent: stops, its log, sources that hang."""

from __future__ import annotations

import json
import threading
from dataclasses import replace
from typing import Any

from rae_node.config.layout import Layout
from rae_node.guard.policy import (
    Reading,
)
from tests.integration.node.harness import FAST, Idle, MakeRig
from tests.until import until


def test_a_guard_that_breaks_stops_the_work_and_looks_again(make_rig: MakeRig) -> None:
    rig = make_rig()
    guard = rig.agent.guard
    deadlines = guard._deadlines

    def broken() -> float:
        raise RuntimeError

    guard._deadlines = guard._stop_all = broken  # type: ignore[assignment]
    guard.look_now(0.0, 5)
    assert not guard.decision.safe
    guard._deadlines = deadlines
    guard.look_now(0.0, 5)
    assert guard.decision.safe


class HangsWithTheOwner:
    """Hangs from the look on at which the owner was seen."""

    name = "gpu"

    def __init__(self) -> None:
        self.owner: Idle | None = None
        self.free = threading.Event()

    def read(self) -> Reading:
        if self.owner is not None and self.owner.present and self.owner.seen.wait(1.0):
            self.free.wait(60)
        return Reading(self.name)


def test_an_owner_who_comes_back_waits_for_no_source_that_hangs(
    make_rig: MakeRig,
) -> None:
    hangs = HangsWithTheOwner()
    rig = make_rig(settings=replace(FAST, source_timeout_sec=60.0), sources=(hangs,))
    hangs.owner = rig.owner
    rig.control.give(params={"command": "sleep", "args": ["30"]}, slot="cpu0")
    until(rig.agent.runs, "the task runs")
    rig.owner.present = True
    try:
        until(lambda: not rig.agent.runs(), "the task is gone")
        assert rig.agent.guard.decision.reasons == ("owner_active",)
    finally:
        hangs.free.set()


def decisions(layout: Layout) -> list[dict[str, Any]]:
    file = layout.logs / "decisions.jsonl"
    found = [json.loads(line) for line in file.read_text().splitlines()]
    return [entry for entry in found if entry["event"] == "decision"]


def test_each_changed_decision_is_logged_once_with_every_reason(
    make_rig: MakeRig, layout: Layout
) -> None:
    """Contract: B6."""
    rig = make_rig()
    rig.owner.present = True
    until(lambda: not rig.agent.guard.decision.safe, "the owner is seen")
    rig.agent.context.pause.set(None)
    rig.agent.guard.look_now(0, 10)
    rig.agent.guard.look_now(0, 10)
    shown = [(entry["safe"], entry["reasons"]) for entry in decisions(layout)]
    assert shown == [(True, []), (False, ["owner_active"]), (False, ["paused", "owner_active"])]


def test_a_flapping_decision_is_logged_a_few_times_a_minute_and_its_causes_are_named(
    make_rig: MakeRig, layout: Layout
) -> None:
    """Contract: B6."""
    rig = make_rig(settings=replace(FAST, decisions_per_minute=4.0))
    for present in (True, False) * 5:
        rig.owner.present = present
        rig.agent.guard.look_now(0, 10)
    assert [entry["safe"] for entry in decisions(layout)] == [True, False, True, False]


def test_a_decision_that_stops_a_task_is_always_logged(make_rig: MakeRig, layout: Layout) -> None:
    """Contract: B6."""
    rig = make_rig(settings=replace(FAST, decisions_per_minute=1.0))
    rig.control.give(params={"command": "sleep", "args": ["600"]})
    until(rig.running, "the task runs")
    rig.owner.present = True
    until(lambda: rig.control.of("yield"), "the task is handed back")
    assert [entry["stopped"] for entry in decisions(layout)] == [0, 1]


def test_no_task_begins_on_a_look_of_half_a_minute_ago(make_rig: MakeRig) -> None:
    rig = make_rig(settings=replace(FAST, guard_idle_sec=30.0))
    until(lambda: rig.control.of("poll"), "the node asks for work")
    looked = rig.agent.guard.looked_at
    until(lambda: rig.agent.context.clock.boot() - looked > 0.2, "the look is old")
    rig.owner.present = True  # a program on the GPU, say: no signal wakes the guard
    rig.control.give(params={"command": "sleep", "args": ["30"]})
    until(lambda: rig.control.of("yield"), "the task is handed back")
    assert not rig.control.of("ack")
