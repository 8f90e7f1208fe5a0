"""The end of an agent: tasks are killed, leases handed back, then a goodbye."""

from __future__ import annotations

import time

import pytest

from rae_node.config.layout import Layout
from tests.integration.node.harness import SLEEP, MakeRig, listing, start
from tests.unit.node.harness import UNREACHABLE
from tests.until import until


def test_shutting_down_kills_hands_back_and_says_goodbye(make_rig: MakeRig) -> None:
    rig = make_rig()
    start(rig)
    rig.agent.shut_down()
    assert not rig.running()
    assert rig.control.of("yield")[0][1] == "shutdown"
    assert [verb for verb, _ in rig.control.calls if verb in {"yield", "goodbye"}] == [
        "yield",
        "goodbye",
    ]


def test_shutting_down_is_quick_without_control(make_rig: MakeRig, layout: Layout) -> None:
    rig = make_rig()
    start(rig)
    rig.control.fail["*"] = UNREACHABLE
    began = time.monotonic()
    rig.agent.shut_down()
    assert time.monotonic() - began < 3 and not rig.running()
    assert listing(layout.spool)


def test_a_task_that_arrives_while_the_agent_ends_is_not_run(make_rig: MakeRig) -> None:
    rig = make_rig()
    task = rig.control.give(slot="cpu7").model_copy(update={"slot": "cpu0", "params": SLEEP})
    until(lambda: rig.control.of("poll"), "a poll")
    rig.agent.may_take = lambda: True  # type: ignore[method-assign] - the look before the end
    rig.agent.stopping = True
    rig.agent._take(task, rig.agent.slots.epoch)
    assert until(lambda: rig.control.of("yield"), "the hand-back")[0][1] == "shutdown"
    assert not rig.running()


def test_no_goodbye_is_said_while_something_may_live(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig()
    until(rig.agent.link.ready.is_set, "the registration")
    monkeypatch.setattr(rig.agent, "_alive", lambda: [object()])
    monkeypatch.setattr(rig.agent, "_enforce_deadlines", lambda: 1.0)
    rig.agent.guard._deadlines = lambda: 1.0
    rig.agent.shut_down()
    assert not rig.control.of("goodbye")
    monkeypatch.undo()
