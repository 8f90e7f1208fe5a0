"""Leases as the agent holds them: acks, heartbeats, deadlines, inputs."""

from __future__ import annotations

from pathlib import Path

import pytest

from rae_node.config.layout import Layout
from rae_protocol.errors import Unreachable
from rae_protocol.models import Command
from tests.integration.node.harness import SLEEP, MakeRig, listing, remote, start
from tests.unit.node.harness import UNREACHABLE
from tests.until import until


def test_no_task_starts_whose_lease_is_over(make_rig: MakeRig, layout: Layout) -> None:
    rig = make_rig()
    rig.control.fail["ack"] = remote("stale_lease")
    rig.control.give(params=SLEEP)
    until(lambda: rig.control.of("ack"), "the ack")
    until(lambda: not rig.agent.runs(), "the slot is free again")
    assert not listing(layout.workdir)


@pytest.mark.parametrize("reached", [True, False])
def test_a_lease_that_was_over_before_its_ack_is_confirmed_quiet_once(
    make_rig: MakeRig, layout: Layout, reached: bool
) -> None:
    rig = make_rig()
    rig.control.fail["ack"] = remote("stale_lease")
    if not reached:
        rig.control.fail["yield"] = remote("stale_lease")
    task = rig.control.give(params=SLEEP)
    until(lambda: rig.control.of("yield"), "the word to control")
    until(lambda: not rig.agent.runs(), "the slot is free again")
    assert [call[:2] for call in rig.control.of("yield")] == [(task.task_id, "cancelled")]
    assert not listing(layout.workdir) and not listing(layout.spool)


def test_an_unanswered_ack_is_handed_back_and_never_run(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.control.fail["ack"] = UNREACHABLE
    task = rig.control.give(params=SLEEP)
    found = until(lambda: rig.control.of("yield"), "the hand-back")
    assert found[0][:2] == (task.task_id, "deadline")
    assert not rig.running()


def test_heartbeats_list_what_lives_and_move_the_deadline(make_rig: MakeRig) -> None:
    rig = make_rig()
    task = start(rig, lease_ttl_s=2.0)
    run = rig.agent.runs()[0]
    first = run.deadline
    until(lambda: run.deadline > first + 0.3, "a later deadline")
    assert rig.control.of("heartbeat")[-1].leases == [run.lease]
    assert run.deadline <= rig.agent.context.clock.boot() + task.lease_ttl_s - rig.control.margin_s


def test_without_an_answered_heartbeat_the_task_dies_at_its_deadline(make_rig: MakeRig) -> None:
    rig = make_rig()
    start(rig, lease_ttl_s=1.2)
    rig.control.fail["heartbeat"] = UNREACHABLE
    found = until(lambda: rig.control.of("yield"), "the hand-back")
    assert found[0][1] == "deadline"


def test_a_stale_lease_ends_the_work_without_a_word(make_rig: MakeRig, tmp_path: Path) -> None:
    folder = tmp_path / "trusted"
    folder.mkdir()
    (folder / "t.py").write_text(
        "import time\ndef run():\n while 1: print('x', flush=True); time.sleep(.02)"
    )
    rig = make_rig(tasks=[folder])
    rig.control.give("python", params={"task": "t"})
    until(rig.running, "the task runs")
    rig.control.fail["log"] = remote("stale_lease")
    until(lambda: not rig.agent.runs(), "the work is dropped")
    assert not rig.control.of("yield") and not rig.control.of("result")


def test_an_input_is_fetched_again_while_control_is_away(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.control.blobs["a"] = b"x"
    rig.control.fail["fetch"] = UNREACHABLE
    rig.control.give(params={"command": "cat", "args": ["a"]}, inputs={"a": {}})
    until(lambda: len(rig.control.of("fetch")) > 1, "two tries")
    rig.control.fail.clear()
    assert rig.outcome()[0].result["stdout"] == "x"


def test_an_input_that_does_not_come_while_heartbeats_do_is_handed_back(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.control.fail["fetch"] = Unreachable("http://c answered 200 (text/html)")
    rig.control.give(params={"command": "cat", "args": ["a"]}, inputs={"a": {}}, lease_ttl_s=2.0)
    _, reason, detail, _ = until(lambda: rig.control.of("yield"), "the hand-back")[0]
    assert reason == "deadline"
    assert detail.startswith("Input 'a': http://c answered 200 (text/html)")
    assert rig.control.of("result") == []


def test_a_lease_that_control_closed_at_a_registration_is_not_renewed(make_rig: MakeRig) -> None:
    rig = make_rig()
    start(rig)
    run = rig.agent.runs()[0]
    rig.control.fail["heartbeat"] = remote("register_again")
    register = rig.control.register
    closed = Command(command="cancel", task_id=run.task.task_id, lease_id=run.lease.lease_id)
    renewed: list[frozenset[str]] = []
    rig.agent.renewed = lambda ids, _: renewed.append(ids)  # type: ignore[method-assign]
    rig.control.register = lambda request: register(request).model_copy(  # type: ignore[method-assign]
        update={"commands": [closed]}
    )
    until(lambda: not rig.agent.runs(), "the task is cancelled")
    assert all(run.lease.lease_id not in ids for ids in renewed)
