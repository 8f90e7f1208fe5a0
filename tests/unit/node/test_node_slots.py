"""Slots: one task in each, and leases that a registration names."""

from __future__ import annotations

from dataclasses import dataclass

from rae_node.session.slots import Slots, slot_names
from rae_protocol.models import LeaseRef


@dataclass(frozen=True)
class Holder:
    lease: LeaseRef
    slot: str


def lease(number: int = 1) -> LeaseRef:
    return LeaseRef(task_id=f"t{number}", attempt=1, lease_id=f"lease-{number:08}")


def test_a_slot_holds_one_task() -> None:
    slots: Slots[Holder] = Slots(slot_names(1, 1))
    assert slots.occupy(Holder(lease(1), "cpu0"), 0) is None
    assert slots.occupy(Holder(lease(2), "cpu0"), 0) == "slot"
    assert slots.occupy(Holder(lease(2), "cpu9"), 0) == "slot"
    assert slots.free() == ("gpu0",)


def test_a_lease_is_either_named_at_registration_or_not_taken() -> None:
    slots: Slots[Holder] = Slots(("cpu0", "cpu1"))
    epoch = slots.epoch
    assert slots.occupy(Holder(lease(1), "cpu0"), epoch) is None
    assert slots.new_epoch() == [lease(1)]
    assert slots.occupy(Holder(lease(2), "cpu1"), epoch) == "epoch"
