"""Finds nodes on which one task after the other fails while such tasks succeed elsewhere.

A node that fails fast is always free, so it would get most of a queue. Only tasks of the same lanes
count: where those fail on other nodes, too, the tasks are to blame. A success is what a node says,
and a node may lie: one that is not trusted takes no other one out of service by itself. Kept in
memory: a restart of control begins anew, and a cordon is in the ledger.
"""

from __future__ import annotations

from collections import defaultdict, deque
from dataclasses import dataclass, field

_REMEMBERED = 100  # outcomes a lane
_LANES = 2000
_SAME = 2
_WITNESSES = 2


@dataclass(frozen=True, slots=True)
class Reporter:
    """The node that reports an outcome. `machine` is its own word, `trusted` the operator's too."""

    node_id: str
    machine: str | None = None
    trusted: bool = False


@dataclass(frozen=True, slots=True)
class _Outcome:
    number: int
    by: Reporter
    task_id: str
    ok: bool


@dataclass(slots=True)
class _Row:
    """Tasks that failed on a node since its last success, and the lane of each."""

    began: int
    tasks: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class _Elsewhere:
    """How tasks of the same lanes ended on other nodes.

    `same`: how many of the very tasks that failed succeeded there, `witnesses`: who says so.
    """

    good: int
    bad: int
    same: int
    witnesses: frozenset[Reporter]

    @property
    def of_tasks(self) -> bool:
        """Whether the tasks are to blame: elsewhere less than two of three succeed."""
        return 2 * self.bad > self.good

    @property
    def believed(self) -> bool:
        """Whether a trusted node says so, or several nodes on several machines do."""
        nodes = {witness.node_id for witness in self.witnesses}
        machines = {witness.machine or witness.node_id for witness in self.witnesses}
        return (
            any(witness.trusted for witness in self.witnesses)
            or min(len(nodes), len(machines)) >= _WITNESSES
        )


class Health:
    """Follows how attempts end. `cordon_after`: different failed tasks in a row."""

    def __init__(self, cordon_after: int) -> None:
        self._cordon_after = cordon_after
        self._rows: dict[str, _Row] = {}
        self._lanes: defaultdict[str, deque[_Outcome]] = defaultdict(
            lambda: deque(maxlen=_REMEMBERED)
        )
        self._count = 0

    def ended(self, by: Reporter, task_id: str, lane_id: str, *, ok: bool) -> None:
        """An attempt succeeded, or failed in a way that may be the node's fault."""
        self._count += 1
        if len(self._lanes) > _LANES:
            self._lanes.clear()
        self._lanes[lane_id].append(_Outcome(self._count, by, task_id, ok))
        if ok:
            self._rows.pop(by.node_id, None)
        else:
            row = self._rows.setdefault(by.node_id, _Row(self._count))
            if len(row.tasks) < _REMEMBERED:
                row.tasks[task_id] = lane_id

    def forget(self, node_id: str) -> None:
        """An operator looked at the node: it begins anew."""
        self._rows.pop(node_id, None)

    def suspect(self, node_id: str) -> str | None:
        """What is suspicious about a node, in words; None when nothing is."""
        row = self._rows.get(node_id)
        if row is None or len(row.tasks) < self._cordon_after / 2:
            return None
        elsewhere = self._elsewhere(node_id, row)
        if not elsewhere.good or elsewhere.of_tasks:
            return None
        failed = f"{len(row.tasks)} different tasks in a row failed here"
        if elsewhere.same:
            return f"{failed}, {elsewhere.same} of them succeeded elsewhere"
        return f"{failed}, {elsewhere.good} like them succeeded elsewhere"

    def to_cordon(self) -> dict[str, str]:
        """Nodes that shall get nothing more, and why.

        Two of the very tasks must have succeeded elsewhere, on nodes that are believed. That others
        like them did, or that a single node says so, is shown only: who submits may choose what
        fails where, and a node may report what it did not do.
        """
        found = {}
        for node_id, row in self._rows.items():
            if len(row.tasks) < self._cordon_after or (why := self.suspect(node_id)) is None:
                continue
            elsewhere = self._elsewhere(node_id, row)
            if elsewhere.same >= _SAME and elsewhere.believed:
                found[node_id] = why
        return found

    def _elsewhere(self, node_id: str, row: _Row) -> _Elsewhere:
        others = [
            outcome
            for lane_id in set(row.tasks.values())
            for outcome in self._lanes.get(lane_id, ())
            if outcome.by.node_id != node_id and outcome.number >= row.began
        ]
        good = {outcome.task_id for outcome in others if outcome.ok}
        bad = sum(not outcome.ok for outcome in others)
        same = good & row.tasks.keys()
        witnesses = frozenset(o.by for o in others if o.ok and o.task_id in same)
        return _Elsewhere(len(good), bad, len(same), witnesses)
