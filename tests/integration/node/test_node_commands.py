"""Control's commands to a node: cancel, drain, resume."""

from __future__ import annotations

from tests.integration.node.harness import MakeRig, start
from tests.until import until


def test_a_cancel_reaches_a_busy_node_through_its_open_poll(make_rig: MakeRig) -> None:
    rig = make_rig()
    task = start(rig)
    until(lambda: rig.control.of("poll")[-1] == (), "a poll for commands alone")
    rig.control.order(command="cancel", task_id=task.task_id, lease_id=task.lease_id)
    assert until(lambda: rig.control.of("yield"), "the hand-back")[0][1] == "cancelled"
    assert rig.run()[0].status == "succeeded"


def test_a_slot_that_becomes_free_is_asked_for_at_once(make_rig: MakeRig) -> None:
    rig = make_rig(max_concurrent_cpu=2)
    rig.control.give(params={"command": "sleep", "args": ["0.2"]})
    rig.outcome()
    until(lambda: rig.control.of("poll")[-1] == ("cpu0", "cpu1"), "a poll for both", 2.0)


def test_a_lost_resume_is_made_up_for_by_the_state_in_the_next_heartbeat(
    make_rig: MakeRig,
) -> None:
    rig = make_rig()
    rig.control.order(command="drain")
    until(lambda: rig.agent.draining, "the node drains")
    # The resume was sent with an answer that never came.
    rig.control.wanted = "work"
    rig.agent.link.beat_now()
    assert rig.run()[0].status == "succeeded"
    assert not rig.agent.draining


def test_drain_finishes_what_runs_and_takes_no_more(make_rig: MakeRig) -> None:
    rig = make_rig(max_concurrent_cpu=2)
    rig.control.give(params={"command": "sleep", "args": ["0.3"]})
    until(rig.running, "the task runs")
    rig.control.order(command="drain")
    assert rig.outcome()[0].status == "succeeded"
    until(lambda: rig.control.of("poll")[-1] == (), "no slot is offered")
    rig.control.order(command="resume")
    until(lambda: rig.control.of("poll")[-1] == ("cpu0", "cpu1"), "both are offered")
