"""Lanes: tasks with the same priority, submitter and needs stand in one queue.

Matching costs by the number of lanes, never by the number of tasks.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from rae_protocol.models import canonical


def lane_id(priority: int, submitter: str, requirements: Mapping[str, Any]) -> str:
    """A readable, stable name that is also an RQ queue's name: `p5.alice.1f0c9a3b77`."""
    digest = hashlib.sha256(canonical(requirements)).hexdigest()[:10]
    return f"p{priority}.{submitter}.{digest}"


def _parts(lane: str) -> tuple[int, str]:
    """Priority and submitter of a lane. Old ledgers have submitters with dots in their names."""
    priority, rest = lane[1:].split(".", 1)
    return int(priority), rest.rsplit(".", 1)[0]


@dataclass(slots=True)
class Lane:
    """One lane with what is queued in it. `oldest` is the head's place in the ledger."""

    lane_id: str
    priority: int
    submitter: str
    requirements: dict[str, Any]
    queued: int = 0
    oldest: int = 0


class LaneTable:
    """The lanes with queued work and the order in which they are served.

    Kept in memory, rebuilt from the ledger at any time; every change arrives after its commit.
    """

    def __init__(self) -> None:
        self.lanes: dict[str, Lane] = {}
        self._served: dict[str, int] = {}
        self._turn = 0

    def add(self, lane: str, seq: int, requirements: str) -> None:
        """A task was queued; `requirements` is the canonical JSON of the lane."""
        entry = self.lanes.get(lane)
        if entry is None:
            entry = Lane(lane, *_parts(lane), json.loads(requirements))
            self.lanes[lane] = entry
            entry.oldest = seq
        entry.queued += 1
        entry.oldest = min(entry.oldest, seq)

    def load(self, lane: str, requirements: str, queued: int, oldest: int) -> None:
        """Take a whole lane over from the ledger."""
        self.add(lane, oldest, requirements)
        self.lanes[lane].queued = queued

    def remove(self, lane: str, oldest: int | None) -> None:
        """A task left the queue; `oldest` is the seq of the new head, None when unknown."""
        entry = self.lanes.get(lane)
        if entry is None:
            return
        entry.queued -= 1
        if entry.queued <= 0:
            del self.lanes[lane]
        elif oldest is not None:
            entry.oldest = oldest

    def served(self, lane: str) -> None:
        """A task of the lane went to a node: its submitter is now the last in turn."""
        self._turn += 1
        self._served[_parts(lane)[1]] = self._turn

    def in_order(self, lanes: Iterable[Lane]) -> list[Lane]:
        """Highest priority, then the submitter served least recently, then the oldest task."""
        served = self._served
        return sorted(
            lanes, key=lambda lane: (-lane.priority, served.get(lane.submitter, 0), lane.oldest)
        )
