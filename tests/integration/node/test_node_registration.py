"""Sessions with control: how they begin, end and begin again."""

from __future__ import annotations

import pytest

from tests.integration.node.harness import MakeRig, remote, start
from tests.until import until


def test_it_registers_before_it_polls_and_says_what_it_is(make_rig: MakeRig) -> None:
    rig = make_rig(max_concurrent_cpu=2)
    until(lambda: rig.control.of("poll"), "a poll")
    request = rig.control.of("register")[0]
    assert (request.ack, request.slots, request.isolation) == (True, ["cpu0", "cpu1"], "process")
    assert request.capabilities.runners == ["cli", "python"]
    assert rig.control.of("poll") == [("cpu0", "cpu1")]


@pytest.mark.parametrize("rc", ["register_again", "unauthorized", "unknown_node"])
def test_a_session_that_is_over_is_begun_again_with_the_running_leases(
    make_rig: MakeRig, rc: str
) -> None:
    rig = make_rig()
    start(rig)
    lease = rig.agent.runs()[0].lease
    rig.control.fail["heartbeat"] = remote(rc)
    until(lambda: len(rig.control.of("register")) >= 2, "another registration")
    rig.control.fail.clear()
    first, again = rig.control.of("register")[:2]
    assert again.unfinished == [lease] and again.instance == first.instance
    assert rig.running()


def test_another_incarnation_of_control_ends_all_work_without_a_report(make_rig: MakeRig) -> None:
    rig = make_rig()
    start(rig)
    rig.control.incarnation = "inc-2"
    until(lambda: not rig.agent.runs(), "the work is dropped")
    assert not rig.control.of("yield")
    assert rig.run()[0].status == "succeeded"


@pytest.mark.parametrize("rc", ["not_enrolled", "node_revoked"])
def test_an_unwelcome_node_stops_its_work_and_asks_again_later(make_rig: MakeRig, rc: str) -> None:
    rig = make_rig()
    start(rig)
    rig.control.fail.update(heartbeat=remote(rc), register=remote(rc))
    until(lambda: not rig.agent.runs(), "the work is dropped")
    assert not rig.agent.done.is_set()
    rig.control.fail.clear()
    assert rig.run()[0].status == "succeeded"


def test_a_superseded_agent_kills_its_work_and_leaves(make_rig: MakeRig) -> None:
    rig = make_rig()
    start(rig)
    rig.control.fail["heartbeat"] = remote("superseded")
    assert rig.agent.done.wait(5) and rig.agent.exit_code == 1
    assert not rig.running()


def test_the_first_poll_follows_the_registration_at_once(make_rig: MakeRig) -> None:
    rig = make_rig(runtime={"execution": {"poll_interval_sec": 60}})
    until(lambda: rig.control.of("poll"), "a poll", 5)
