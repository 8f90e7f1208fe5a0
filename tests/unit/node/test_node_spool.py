"""The spool: results and yields that wait for control."""

from __future__ import annotations

from typing import Any

import pytest

from rae_node.config.layout import Layout
from rae_node.session.spool import Spool
from rae_node.telemetry.log import EventLog
from rae_protocol.models import LeaseRef


def lease(number: int = 1) -> LeaseRef:
    return LeaseRef(task_id=f"t{number}", attempt=1, lease_id=f"lease-{number:08}")


def test_what_was_spooled_survives_and_what_was_not_finished_goes(
    layout: Layout, quiet_log: EventLog
) -> None:
    first = Spool(layout.spool, quiet_log)
    (first.staging(lease(1)) / "0").write_bytes(b"artifact")
    body = {
        **lease(1).model_dump(), "status": "succeeded", "result": [1],
        "artifacts": [{"name": "a/b", "size": 8}],
    }  # fmt: skip
    first.put("result", lease(1), body)
    first.staging(lease(2))
    (layout.spool / "rubbish").mkdir()
    again = Spool(layout.spool, quiet_log)
    again.load()
    entry = again.take()
    assert entry is not None and entry.result().result == [1]
    assert [(name, path.read_bytes()) for name, path in entry.artifacts()] == [("a/b", b"artifact")]
    assert again.take() is None
    again.give_back(entry)
    again.remove(entry)
    assert list(layout.spool.iterdir()) == [] and len(again) == 0


def test_a_message_that_cannot_be_delivered_does_not_hold_up_the_others(
    layout: Layout, quiet_log: EventLog
) -> None:
    spool = Spool(layout.spool, quiet_log)
    for number in (1, 2):
        spool.put("yield", lease(number), {"reason": "owner"})
    first = spool.take()
    assert first is not None and first.lease == lease(1)
    spool.give_back(first)
    second = spool.take()
    assert second is not None and second.lease == lease(2)


def test_a_message_that_does_not_fit_on_the_disk_leaves_nothing_half_written(
    layout: Layout, quiet_log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    spool = Spool(layout.spool, quiet_log)
    (spool.staging(lease()) / "0").write_bytes(b"artifact")

    def full(*_: Any) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("rae_node.session.spool.write_file", full)
    with pytest.raises(OSError, match="No space"):
        spool.put("result", lease(), {})
    assert list(layout.spool.iterdir()) == [] and len(spool) == 0


def test_a_result_that_waits_is_never_replaced_by_a_yield(
    layout: Layout, quiet_log: EventLog
) -> None:
    spool = Spool(layout.spool, quiet_log)
    lease = LeaseRef(task_id="t", attempt=1, lease_id="0123456789abcdef")
    spool.put("yield", lease, {"reason": "owner"})
    spool.put("result", lease, {**lease.model_dump(), "status": "succeeded"})
    spool.put("yield", lease, {"reason": "deadline"})
    entry = spool.take()
    assert entry is not None and entry.kind == "result"
    assert entry.result().status == "succeeded"
