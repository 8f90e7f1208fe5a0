"""After a restore control gives no lease while work that it does not know may be alive.

The restored ledger lacks what was leased since the backup. Such a lease ends at the latest when the
longest lease time that control allows has passed. It has ended earlier where every agent that had a
session reports the new incarnation, because an agent kills all older work before it reports that.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

Place = tuple[str, str]  # node_id and machine
WAY_OUT = "stop control, run `rae-control restore --nodes-are-dead --data DIR`, start control"


@dataclass(slots=True)
class Hold:
    """`until` is on the boot clock; `waits_for`: who has not confirmed yet, None: time decides."""

    until: float
    waits_for: set[Place] | None

    def confirm(self, node_id: str, machine: str | None) -> None:
        """The agent of a node on that machine knows the new incarnation."""
        if self.waits_for is not None and machine is not None:
            self.waits_for.discard((node_id, machine))

    def left(self, now: float) -> float:
        """For how many seconds no lease may be given, at most; 0: leases are given."""
        return 0.0 if self.waits_for == set() else max(0.0, self.until - now)

    def sentence(self, moment: str) -> str:
        """Why no task is leased; `moment` is `until` for people."""
        text = f"A backup was restored, and older work may run: no task is leased until {moment}"
        if self.waits_for is not None:
            names = sorted({node_id for node_id, _ in self.waits_for})
            more = f" and {len(names) - 5} more" if len(names) > 5 else ""
            text += f", or until these nodes have reported: {', '.join(names[:5])}{more}"
        return f"{text}. If all nodes are off: {WAY_OUT}."


def elapsed(then: tuple[float, float], now: tuple[float, float]) -> float:
    """Seconds between two moments (wall clock, boot clock) that have surely passed.

    The boot clock begins anew when the machine starts, and then shows too little; the wall clock
    may be set. What both agree on is safe.
    """
    return max(0.0, min(now[0] - then[0], now[1] - then[1]))


def merged(sides: Iterable[set[Place] | None]) -> set[Place] | None:
    """Everybody who must confirm; None where one side does not know, or nothing could confirm."""
    every: set[Place] = set()
    for side in sides:
        if side is None:
            return None
        every |= side
    return every
