"""`rae-control check`: does the whole ledger hold what it promises?"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import apsw

from rae_control.core.states import chain_problems, counters
from rae_control.files import PIECE
from rae_control.ledger.store import Row, fetch

_RESTORE = "restore a backup, or report it with this line"


@dataclass(frozen=True, slots=True)
class Violation:
    """One broken promise: the rule's stable name, what it is about, what to do."""

    rule: str
    about: str
    todo: str = _RESTORE

    def __str__(self) -> str:
        return f"{self.rule}: {self.about}; {self.todo}"


_ORPHAN = (
    "SELECT DISTINCT x.task_id || ' is not there' AS about FROM TABLE x"
    " LEFT JOIN tasks t USING (task_id) WHERE x.task_id IS NOT NULL AND t.seq IS NULL"
)

# Each finds rows with one column `about`; a sound ledger has none.
_RULES = {
    "one_live_attempt": "SELECT task_id || ' has ' || count(*) || ' open attempts' AS about"
    " FROM attempts WHERE ended_at IS NULL GROUP BY task_id HAVING count(*) > 1",
    "lease_matches_state": "SELECT task_id || ' is ' || state || ' with lease '"
    " || coalesce(lease_id, '(none)') AS about FROM tasks"
    " WHERE (state IN ('leased', 'running')) != (lease_id IS NOT NULL)",
    "lease_has_attempt": "SELECT t.task_id || ' has lease ' || t.lease_id || ' without its attempt'"
    " AS about FROM tasks t LEFT JOIN attempts a ON a.lease_id = t.lease_id"
    " AND a.task_id = t.task_id AND a.attempt = t.attempts AND a.node_id = t.node_id"
    " AND a.slot = t.slot AND a.state = t.state AND a.ended_at IS NULL"
    " WHERE t.lease_id IS NOT NULL AND a.lease_id IS NULL",
    "open_attempt_has_task": "SELECT a.task_id || ' attempt ' || a.attempt || ' is open, and its"
    " task has another lease' AS about FROM attempts a LEFT JOIN tasks t ON t.lease_id = a.lease_id"
    " WHERE a.ended_at IS NULL AND t.task_id IS NULL",
    "fence_is_an_ended_attempt": "SELECT t.task_id || ' has fence ' || t.fence AS about"
    " FROM tasks t LEFT JOIN attempts a ON a.lease_id = t.fence AND a.task_id = t.task_id"
    " AND a.ended_at IS NOT NULL WHERE t.fence IS NOT NULL AND a.lease_id IS NULL",
    "one_success": "SELECT t.task_id || ' is ' || t.state || ' with ' || count(a.lease_id)"
    " || ' successful attempts' AS about FROM tasks t LEFT JOIN attempts a"
    " ON a.task_id = t.task_id AND a.state = 'succeeded' GROUP BY t.seq"
    " HAVING count(a.lease_id) != (t.state = 'succeeded')",
    "end_has_time": "SELECT task_id || ' is ' || state || ', finished_at is '"
    " || coalesce(finished_at, 'empty') AS about FROM tasks WHERE"
    " (state IN ('succeeded', 'failed', 'cancelled', 'expired')) != (finished_at IS NOT NULL)",
    "attempts_counted": "SELECT t.task_id || ' counts ' || t.attempts || ' attempts and has '"
    " || count(a.lease_id) AS about FROM tasks t LEFT JOIN attempts a USING (task_id)"
    " GROUP BY t.seq HAVING count(a.lease_id) != t.attempts"
    " OR coalesce(max(a.attempt), 0) != t.attempts",
    "unmet_counted": "SELECT t.task_id || ' waits for ' || t.unmet || ' tasks, and '"
    " || count(n.task_id) || ' are not done' AS about FROM tasks t"
    " LEFT JOIN dependencies d ON d.task_id = t.task_id"
    " LEFT JOIN tasks n ON n.task_id = d.needs AND n.state != 'succeeded'"
    " WHERE t.finished_at IS NULL GROUP BY t.seq HAVING count(n.task_id) != t.unmet",
    "lane_exists": "SELECT t.task_id || ' is in lane ' || t.lane_id AS about FROM tasks t"
    " LEFT JOIN lanes l USING (lane_id) WHERE l.lane_id IS NULL",
    "node_exists": "SELECT DISTINCT a.node_id || ' worked on ' || a.task_id AS about"
    " FROM attempts a LEFT JOIN nodes n USING (node_id) WHERE n.node_id IS NULL",
    "edge_has_ends": "SELECT d.task_id || ' needs ' || d.needs AS about FROM dependencies d"
    " LEFT JOIN tasks a ON a.task_id = d.task_id LEFT JOIN tasks b ON b.task_id = d.needs"
    " WHERE a.seq IS NULL OR b.seq IS NULL OR a.submitter != b.submitter",
    **{
        f"{table}_of_a_task": _ORPHAN.replace("TABLE", table)
        for table in ("attempts", "events", "artifacts", "task_blobs")
    },
    "input_is_here": "SELECT r.task_id || ' reads ' || r.sha256 AS about FROM task_blobs r"
    " JOIN tasks t USING (task_id) LEFT JOIN blobs b"
    " ON b.sha256 = r.sha256 AND b.submitter = t.submitter WHERE b.sha256 IS NULL",
}


def rows_problems(db: apsw.Connection) -> Iterator[Violation]:
    """What the rows say against each other, in one snapshot."""
    for row in fetch(db, "PRAGMA integrity_check"):
        if row["integrity_check"] != "ok":
            yield Violation("sqlite_integrity", row["integrity_check"])
    for rule, sql in _RULES.items():
        for row in fetch(db, sql):
            yield Violation(rule, row["about"])
    yield from _histories(db)


def _histories(db: apsw.Connection) -> Iterator[Violation]:
    """Every task's events and attempts beside its state and its counters."""
    events = groupby(_streamed(db, "events", "seq"), lambda row: row["task_id"])
    attempts = groupby(_streamed(db, "attempts", "attempt"), lambda row: row["task_id"])
    steps, tries = next(events, None), next(attempts, None)
    for task in _streamed(db, "tasks", "seq"):
        name, steps_here, tries_here = task["task_id"], list[Row](), list[Row]()
        while steps is not None and steps[0] <= name:
            steps_here = list(steps[1]) if steps[0] == name else []
            steps = next(events, None)
        while tries is not None and tries[0] <= name:
            tries_here = list(tries[1]) if tries[0] == name else []
            tries = next(attempts, None)
        moves = [row for row in steps_here if row["to_state"] is not None]
        for text in chain_problems(task["state"], moves):
            yield Violation("history_is_legal", f"{name}: {text}")
        again = max((row["seq"] for row in moves if row["reason"] == "requeued"), default=0)
        before = max((row["attempt"] or 0 for row in moves if row["seq"] < again), default=0)
        made, kept = counters(tries_here, before), (task["failures"], task["interruptions"])
        if made != kept:
            yield Violation(
                "counters_match", f"{name} counts (failures, interruptions) {kept}, made {made}"
            )


_COLUMNS = {
    "events": "task_id, seq, from_state, to_state, attempt, reason",
    "attempts": "task_id, attempt, state",
    "tasks": "task_id, state, failures, interruptions",
}


def _streamed(db: apsw.Connection, table: str, then: str) -> Iterator[Row]:
    columns = _COLUMNS[table]
    names = columns.split(", ")
    sql = f"SELECT {columns} FROM {table} WHERE task_id IS NOT NULL ORDER BY task_id, {then}"  # noqa: S608
    for row in db.execute(sql):
        yield dict(zip(names, row, strict=True))


def blob_problems(db: apsw.Connection, blobs: Path, deep: bool) -> Iterator[Violation]:
    """Blobs that a row refers to, and the disk lacks (or, `deep`, holds with other bytes)."""
    for row in db.execute("SELECT DISTINCT sha256, size FROM blobs UNION SELECT sha256, size"
                          " FROM artifacts"):  # fmt: skip
        name, size = str(row[0]), row[1]
        path = blobs / name[:2] / name
        try:
            have = path.stat().st_size
        except FileNotFoundError:
            yield Violation("blob_is_here", f"{name} is missing")
            continue
        if have != size:
            yield Violation("blob_is_here", f"{name} has {have} bytes, not {size}")
        elif deep and _hash(path) != name:
            yield Violation("blob_is_whole", f"the bytes of {name} are not what they were")


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()
