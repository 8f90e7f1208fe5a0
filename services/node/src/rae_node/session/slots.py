"""Slots and what runs in them; the one place that knows which leases are alive."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Generic, Protocol, TypeVar

from rae_protocol.models import LeaseRef


class Occupant(Protocol):
    """What holds a slot."""

    lease: LeaseRef
    slot: str


def slot_names(cpu: int, gpu: int) -> tuple[str, ...]:
    """cpu0… and gpu0…."""
    return (*(f"cpu{n}" for n in range(cpu)), *(f"gpu{n}" for n in range(gpu)))


H = TypeVar("H", bound=Occupant)


class Slots(Generic[H]):
    """Occupants by lease. Thread-safe.

    An *epoch* is the life of one registration. The leases named at a registration and the epoch's
    change are one step, so a lease is either named or, being of an older epoch, not taken: control
    closes what was not named.
    """

    def __init__(
        self, names: Sequence[str], changed: Callable[[int], None] = lambda _running: None
    ) -> None:
        self.names = tuple(names)
        self._changed = changed  # called at one more, and at none; must not block
        self.epoch = 0
        self._lock = threading.Condition()
        self._by_lease: dict[str, H] = {}

    def new_epoch(self) -> list[LeaseRef]:
        """Begin a registration: the leases to tell."""
        with self._lock:
            self.epoch += 1
            return [occupant.lease for occupant in self._by_lease.values()]

    def occupy(self, occupant: H, epoch: int) -> str | None:
        """Take the slot; None when that went well, else why not (`epoch`, `slot`)."""
        with self._lock:
            if epoch != self.epoch:
                return "epoch"
            if occupant.slot not in self.names or occupant.slot in self._busy():
                return "slot"
            self._by_lease[occupant.lease.lease_id] = occupant
            self._changed(len(self._by_lease))
            return None

    def release(self, occupant: H) -> None:
        """The slot is free again."""
        with self._lock:
            self._by_lease.pop(occupant.lease.lease_id, None)
            if not self._by_lease:
                self._changed(0)
            self._lock.notify_all()

    def free(self) -> tuple[str, ...]:
        """Slots without a task."""
        with self._lock:
            busy = self._busy()
            return tuple(name for name in self.names if name not in busy)

    def occupants(self) -> list[H]:
        """Everything that runs."""
        with self._lock:
            return list(self._by_lease.values())

    def wait_empty(self, timeout_s: float) -> bool:
        """Until nothing runs, at most so long; whether that is so."""
        with self._lock:
            return self._lock.wait_for(lambda: not self._by_lease, timeout_s)

    def __len__(self) -> int:
        return len(self._by_lease)

    def _busy(self) -> set[str]:
        return {occupant.slot for occupant in self._by_lease.values()}
