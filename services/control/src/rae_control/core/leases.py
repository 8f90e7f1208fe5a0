"""Open leases and when they end.

A lease counts from the claim; the ack and each heartbeat that lists it renew it. Control's expiry
is the receipt of the last of these plus the ttl, on the boot clock; the node's own deadline is
earlier by construction (sending time, minus the margin), so two attempts never live at once.

A heartbeat without a list renews every lease of its node, but not for ever: such a client may have
lost its task long ago. It renews none that the client seems to have forgotten: one with a single
slot that was started again, or asks for work for that slot. What ends so was not confirmed by the
node, which may still run it, so the reaper fences it.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass


@dataclass(slots=True)
class Lease:
    """One open lease. Times on the boot clock, in seconds.

    `named`: the latest heartbeat that could renew it had it in its list. `ending`: the reaper ends
    it now, so no heartbeat renews it any more. `forgotten`: only one that names it does.
    """

    lease_id: str
    task_id: str
    attempt: int
    node_id: str
    slot: str
    lane_id: str
    ttl_s: float
    timeout_s: float
    renewed: float
    claimed: float
    acked: float | None
    named: bool = True
    ending: bool = False
    forgotten: bool = False

    def expires(self) -> float:
        """When control takes the task back."""
        return self.renewed + self.ttl_s

    def renew_unnamed(self, now: float) -> None:
        """A heartbeat without a list: renewed, but never beyond the run's limit and two ttls."""
        if self.acked is not None and not self.ending:
            bound = self.acked + self.timeout_s + self.ttl_s
            if not self.forgotten:
                self.renewed = max(self.renewed, min(now, bound))
            self.named = False


class LeaseTable:
    """All open leases, in memory: a restart grants each a full ttl (DESIGN §4)."""

    def __init__(self) -> None:
        self._by_id: dict[str, Lease] = {}
        self._by_node: dict[str, dict[str, Lease]] = {}

    def __iter__(self) -> Iterator[Lease]:
        return iter(list(self._by_id.values()))

    def __len__(self) -> int:
        return len(self._by_id)

    def open(self, lease: Lease) -> None:
        """A claim was committed."""
        self._by_id[lease.lease_id] = lease
        self._by_node.setdefault(lease.node_id, {})[lease.lease_id] = lease

    def close(self, lease_id: str) -> Lease | None:
        """The lease ended, however."""
        lease = self._by_id.pop(lease_id, None)
        if lease is not None:
            self._by_node[lease.node_id].pop(lease_id, None)
        return lease

    def get(self, lease_id: str) -> Lease | None:
        """An open lease."""
        return self._by_id.get(lease_id)

    def of_node(self, node_id: str) -> list[Lease]:
        """The open leases of a node."""
        return list(self._by_node.get(node_id, {}).values())

    def renew(self, lease_ids: Iterable[str], node_id: str, now: float) -> list[str]:
        """Renew those of the node; returns the ids that are not open (or not the node's)."""
        stale = []
        for lease_id in lease_ids:
            lease = self._by_id.get(lease_id)
            if lease is None or lease.node_id != node_id or lease.ending:
                stale.append(lease_id)
            elif lease.acked is not None:
                lease.renewed, lease.named, lease.forgotten = now, True, False
        return stale

    def renew_all(self, node_id: str, now: float) -> None:
        """Renew what the node has, within `Lease.renew_unnamed`'s bound."""
        for lease in self.of_node(node_id):
            lease.renew_unnamed(now)

    def forget(self, node_id: str, keep: Collection[str] = ()) -> None:
        """The node seems to know nothing of its leases but those: they run out by themselves."""
        for lease in self.of_node(node_id):
            lease.forgotten = lease.lease_id not in keep

    def unacked(self, now: float, ack_timeout_s: float) -> list[Lease]:
        """Claims whose ack did not come in time: they cost nothing."""
        return [
            lease
            for lease in self._by_id.values()
            if lease.acked is None and now - lease.claimed > ack_timeout_s
        ]

    def end_expired(self, now: float) -> list[Lease]:
        """Leases to take back. From here on a heartbeat that lists one gets it back as over."""
        found = [lease for lease in self._by_id.values() if lease.ending or now > lease.expires()]
        for lease in found:
            lease.ending = True
        return found

    def grant(self, seconds: float) -> None:
        """Control did not run for a while: that time does not count."""
        for lease in self._by_id.values():
            lease.renewed += seconds
            lease.claimed += seconds
            if lease.acked is not None:
                lease.acked += seconds
