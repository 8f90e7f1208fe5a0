"""Results wait in the spool until control has them."""

from __future__ import annotations

from typing import Any

import pytest

from rae_node.config.layout import Layout
from rae_protocol.errors import Unreachable
from tests.integration.node.harness import MakeRig, listing, remote
from tests.unit.node.harness import UNREACHABLE
from tests.until import until


def test_a_result_waits_in_the_spool_until_control_has_it(
    make_rig: MakeRig, layout: Layout
) -> None:
    rig = make_rig()
    task = rig.control.give(params={"command": "sleep", "args": ["0.1"]})
    until(rig.running, "the task runs")
    rig.control.fail["*"] = UNREACHABLE
    until(lambda: rig.control.of("result"), "a try")
    assert (layout.spool / task.lease_id / "record.json").exists()
    rig.control.calls.clear()
    rig.control.fail.clear()
    assert rig.outcome()[0].status == "succeeded"
    until(lambda: not listing(layout.spool), "the spool is empty")


def test_undelivered_results_are_named_at_registration(
    make_rig: MakeRig, layout: Layout, quiet_log: Any
) -> None:
    from rae_node.session.spool import Spool
    from rae_protocol.models import LeaseRef

    lease = LeaseRef(task_id="t", attempt=2, lease_id="lease-00000009")
    body = {**lease.model_dump(), "status": "succeeded", "result": 1}
    Spool(layout.spool, quiet_log).put("result", lease, body)
    rig = make_rig()
    until(lambda: rig.control.of("result"), "the delivery")
    assert rig.control.of("register")[0].unfinished == [lease]


def test_a_result_that_is_stale_is_dropped(make_rig: MakeRig, layout: Layout) -> None:
    rig = make_rig()
    rig.control.fail["result"] = remote("stale_lease")
    rig.control.give()
    until(lambda: rig.control.of("result"), "a try")
    until(lambda: not listing(layout.spool), "the spool is empty")
    assert len(rig.control.of("result")) == 1


def test_a_refused_success_becomes_a_failure_that_says_so(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.control.fail["result"] = remote("body_too_large")
    rig.control.give()
    until(lambda: rig.control.of("result"), "a try")
    until(lambda: len(rig.control.of("result")) == 2, "the replacement")
    last = rig.control.of("result")[-1][0]
    assert last.status == "failed" and "refused the result" in last.error.message


def test_a_full_disk_does_not_turn_a_refused_result_into_a_hand_back(
    make_rig: MakeRig, monkeypatch: pytest.MonkeyPatch
) -> None:
    rig = make_rig()
    rig.control.fail["result"] = remote("body_too_large")
    put = rig.agent.spool.put

    def full(kind: Any, lease: Any, body: Any) -> None:
        if body.get("status") == "failed":
            raise OSError(28, "No space left on device")
        put(kind, lease, body)

    monkeypatch.setattr(rig.agent.spool, "put", full)
    rig.control.give()
    until(lambda: rig.control.of("result"), "a try")
    until(lambda: not rig.agent.runs(), "the end")
    assert not rig.control.of("yield") and not rig.agent.spool.leases()


def test_no_goodbye_is_said_while_a_result_waits_for_control(make_rig: MakeRig) -> None:
    rig = make_rig()
    rig.control.fail["result"] = Unreachable("control is away")
    rig.control.give()
    until(lambda: len(rig.agent.spool), "the result waits")
    rig.agent.shut_down()
    assert not rig.control.of("goodbye"), "its lease would be closed, and the work done again"
    assert len(rig.agent.spool) == 1
