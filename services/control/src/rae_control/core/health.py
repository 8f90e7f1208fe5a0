"""Finds nodes on which one task after the other fails while such tasks succeed elsewhere.

A node that fails fast is always free, so it would get most of a queue. Only tasks of the same lanes
count: where those fail on other nodes, too, the tasks are to blame. A success is what a node says,
and a node may lie: one that is not trusted takes no other one out of service by itself. Kept in
memory: a restart of control begins anew, and a cordon is in the ledger.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field

_TASKS = 100  # of a row
_ELSEWHERE = 400  # outcomes, for each row
_SAME = 2
_WITNESSES = 2


@dataclass(frozen=True, slots=True)
class Reporter:
    """The node that reports an outcome. `machine` is its own word, `trusted` the operator's too."""

    node_id: str
    machine: str | None = None
    trusted: bool = False


@dataclass(slots=True)
class _Row:
    """Tasks that failed on a node since its last success, and the lane of each.

    `elsewhere`: how tasks of those lanes ended on other nodes meanwhile. `same`: of the very tasks
    that failed here, those that succeeded there, and who reports it.
    """

    tasks: dict[str, str] = field(default_factory=dict)
    elsewhere: deque[bool] = field(default_factory=lambda: deque(maxlen=_ELSEWHERE))
    same: dict[str, set[Reporter]] = field(default_factory=dict)

    @property
    def good(self) -> int:
        """How many succeeded elsewhere; 0 where so few of them did that the tasks are to blame."""
        good = sum(self.elsewhere)
        return good if 2 * (len(self.elsewhere) - good) <= good else 0

    @property
    def believed(self) -> bool:
        """Whether a trusted node says so, or several nodes on several machines do."""
        every = set[Reporter]().union(*self.same.values())
        nodes = {one.node_id for one in every}
        machines = {one.machine or one.node_id for one in every}
        return any(one.trusted for one in every) or min(len(nodes), len(machines)) >= _WITNESSES


class Health:
    """Follows how attempts end. `cordon_after`: different failed tasks in a row."""

    def __init__(self, cordon_after: int) -> None:
        self._cordon_after = cordon_after
        self._rows: dict[str, _Row] = {}
        self._failing: defaultdict[str, set[str]] = defaultdict(set)  # nodes, by lane

    def ended(self, by: Reporter, task_id: str, lane_id: str, *, ok: bool) -> None:
        """An attempt succeeded, or failed in a way that may be the node's fault."""
        for node_id in self._failing.get(lane_id, ()):
            row = self._rows[node_id]
            if node_id != by.node_id:
                row.elsewhere.append(ok)
                if ok and task_id in row.tasks:
                    row.same.setdefault(task_id, set()).add(by)
        if ok:
            self.forget(by.node_id)
            return
        row = self._rows.setdefault(by.node_id, _Row())
        if len(row.tasks) < _TASKS:
            row.tasks[task_id] = lane_id
            self._failing[lane_id].add(by.node_id)

    def forget(self, node_id: str) -> None:
        """A task succeeded there, or an operator looked at the node: it begins anew."""
        row = self._rows.pop(node_id, _Row())
        for lane_id in set(row.tasks.values()):
            self._failing[lane_id].discard(node_id)
            if not self._failing[lane_id]:
                del self._failing[lane_id]

    def suspect(self, node_id: str) -> str | None:
        """What is suspicious about a node, in words; None when nothing is."""
        row = self._rows.get(node_id)
        if row is None or len(row.tasks) < self._cordon_after / 2 or not row.good:
            return None
        failed = f"{len(row.tasks)} different tasks in a row failed here"
        if row.same:
            return f"{failed}, {len(row.same)} of them succeeded elsewhere"
        return f"{failed}, {row.good} like them succeeded elsewhere"

    def to_cordon(self) -> dict[str, str]:
        """Nodes that shall get nothing more, and why.

        Two of the very tasks must have succeeded elsewhere, on nodes that are believed. That others
        like them did, or that a single node says so, is shown only: who submits may choose what
        fails where, and a node may report what it did not do.
        """
        found = {}
        for node_id, row in self._rows.items():
            if len(row.tasks) < self._cordon_after or len(row.same) < _SAME or not row.believed:
                continue
            if (why := self.suspect(node_id)) is not None:
                found[node_id] = why
        return found
