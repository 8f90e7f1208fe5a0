"""`rae-control check`: does the whole ledger hold what it promises?"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path

import apsw

from rae_control.core.lanes import lane_id
from rae_control.core.states import chain_problems, counters
from rae_control.ledger.base import Db, Row, fetch
from rae_control.ledger.kept import NO_SPEC
from rae_control.ledger.schema import BLOB_BYTES, LABELS, OPEN_NEED, READS, SCHEMA
from rae_control.storage.files import PIECE

_AT_ONCE = 5000
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
    f" LEFT JOIN tasks n ON n.task_id = d.needs AND {OPEN_NEED}"
    " WHERE t.finished_at IS NULL GROUP BY t.seq HAVING count(n.task_id) != t.unmet",
    "release_is_of_an_end": "SELECT r.needs || ' has dependents to release' AS about"
    " FROM releases r LEFT JOIN tasks t ON t.task_id = r.needs WHERE t.finished_at IS NULL",
    "stored_is_counted": "SELECT submitter || ' has ' || sum(bytes) || ' bytes more or"
    " less than counted' AS about FROM (SELECT submitter, bytes FROM stored"
    f" UNION ALL SELECT submitter, -{BLOB_BYTES} FROM blobs) GROUP BY submitter HAVING sum(bytes)",
    "kept_is_counted": "SELECT submitter || ' has ' || sum(bytes) || ' and ' || sum(record)"
    " || ' bytes of ended tasks more or less than counted' AS about FROM (SELECT * FROM kept"
    " UNION ALL SELECT submitter, -kept_bytes, -kept_record FROM tasks) GROUP BY submitter"
    " HAVING sum(bytes) OR sum(record)",
    "kept_from_the_end": "SELECT task_id || ' is ' || state || ' and counts as kept' AS about"
    " FROM tasks WHERE iif(finished_at IS NULL, kept_bytes > 0, kept_record = 0)",
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
    "spec_of_a_task": "SELECT t.task_id || ' has no spec of ' || t.spec_bytes || ' bytes' AS about"
    " FROM tasks t LEFT JOIN specs s USING (seq) WHERE octet_length(s.spec) IS NOT t.spec_bytes"
    f" AND NOT (t.spec_bytes = 0 AND s.spec IS '{NO_SPEC}' AND t.finished_at IS NOT NULL)"
    " UNION ALL SELECT 'spec ' || seq FROM specs LEFT JOIN tasks t USING (seq)"
    " WHERE t.task_id IS NULL",
    "result_of_a_task": "SELECT 'result ' || seq AS about FROM results"
    " LEFT JOIN tasks t USING (seq) WHERE t.task_id IS NULL",
    "json_is_valid": "SELECT task_id || ' has an error that is no JSON' AS about"
    " FROM tasks WHERE NOT json_valid(error)"
    " UNION ALL SELECT 'spec ' || seq FROM specs WHERE NOT json_valid(spec)"
    f" OR (labels IS NOT spec -> '$.labels' AND spec != '{NO_SPEC}')"
    " UNION ALL SELECT 'result ' || seq FROM results WHERE NOT json_valid(result)"
    " UNION ALL SELECT 'lane ' || lane_id FROM lanes WHERE NOT json_valid(requirements)"
    " UNION ALL SELECT 'event ' || seq FROM events WHERE NOT json_valid(detail)"
    " UNION ALL SELECT 'node ' || node_id FROM nodes WHERE NOT json_valid(info)",
    "ledger_has_a_name": "SELECT 'the incarnation is missing' AS about WHERE NOT EXISTS"
    " (SELECT 1 FROM meta WHERE key = 'incarnation')",
    "failure_has_error": "SELECT task_id || ' failed without an error' AS about FROM tasks"
    " WHERE state = 'failed' AND error IS NULL",
    "result_has_digest": "SELECT task_id || ' attempt ' || attempt || ' has no result_sha256'"
    " AS about FROM attempts WHERE state = 'succeeded' AND result_sha256 IS NULL",
    "numbers_go_on": "SELECT m.name || ' were numbered to ' || m.seq AS about FROM"
    " (SELECT 'tasks' AS name, max(seq) AS seq FROM tasks"
    " UNION ALL SELECT 'events', max(seq) FROM events) m LEFT JOIN sqlite_sequence s USING (name)"
    " WHERE coalesce(s.seq, 0) < m.seq",
    "priority_as_submitted": "SELECT task_id || ' has priority ' || priority AS about FROM tasks"
    " JOIN specs USING (seq) WHERE priority != coalesce(spec ->> '$.priority', priority)",
    "inputs_recorded": "WITH want AS (READS) SELECT task_id || ' reads ' || sha256 AS about"
    " FROM (SELECT * FROM want EXCEPT SELECT sha256, task_id FROM task_blobs)"
    " UNION ALL SELECT task_id || ' does not read ' || sha256"
    " FROM (SELECT sha256, task_id FROM task_blobs EXCEPT SELECT * FROM want)".replace(
        "READS", READS
    ),
    "labels_recorded": f"SELECT 'task ' || seq || ' has the label ' || label AS about FROM"
    f" ({LABELS} EXCEPT SELECT label, seq FROM labels) UNION ALL SELECT 'task ' || seq"
    " || ' does not have the label ' || label"
    f" FROM (SELECT label, seq FROM labels EXCEPT {LABELS})",
    "input_is_here": "SELECT r.task_id || ' reads ' || r.sha256 AS about FROM task_blobs r"
    " JOIN tasks t USING (task_id) LEFT JOIN blobs b"
    " ON b.sha256 = r.sha256 AND b.submitter = t.submitter WHERE b.sha256 IS NULL",
}


# Every table, index and column.
_SHAPE = """SELECT type || ' ' || name FROM sqlite_master WHERE name NOT LIKE 'sqlite%'
    UNION SELECT m.name || '.' || c.name FROM sqlite_master m, pragma_table_info(m.name) c
    WHERE m.type = 'table' AND m.name NOT LIKE 'sqlite%'"""


def rows_problems(db: Db) -> Iterator[Violation]:
    """What the rows say against each other: each rule, and some histories at a time, in a snapshot
    of its own, so that the write-ahead log is emptied in between."""
    for row in fetch(db, "PRAGMA integrity_check"):
        if row["integrity_check"] != "ok":
            yield Violation("sqlite_integrity", row["integrity_check"])
    with closing(apsw.Connection(":memory:")) as fresh:
        fresh.execute(SCHEMA)
        for about in {*fresh.execute(_SHAPE)} ^ {*db.execute(_SHAPE)}:
            yield Violation("schema_is_ours", f"{about[0]} is missing, or is not ours")
    for rule, sql in _RULES.items():
        for row in fetch(db, sql):
            yield Violation(rule, row["about"])
    yield from _lanes(db)
    yield from _histories(db)


def _lanes(db: Db) -> Iterator[Violation]:
    for row in fetch(db, "SELECT DISTINCT lane_id, priority, submitter, requirements FROM tasks"
                         " JOIN lanes USING (lane_id)"):  # fmt: skip
        needs = json.loads(row["requirements"])
        if lane_id(row["priority"], row["submitter"], needs) != row["lane_id"]:
            about = f"{row['lane_id']} holds tasks of {row['submitter']} that are not its own"
            yield Violation("lane_is_its_own", about)


def _histories(db: Db) -> Iterator[Violation]:
    """Every task's events and attempts beside its state and its counters."""
    last: str | None = ""
    while last is not None:
        with _snapshot(db):
            sql = "SELECT task_id FROM tasks WHERE task_id > ? ORDER BY task_id LIMIT 1 OFFSET ?"
            until = db.execute(sql, (last, _AT_ONCE)).get
            yield from _histories_of(db, last, _AFTER_ALL if until is None else until)
        last = until


def _histories_of(db: Db, after: str, until: str) -> Iterator[Violation]:
    events = groupby(_streamed(db, "events", "seq", after, until), lambda row: row["task_id"])
    attempts = groupby(
        _streamed(db, "attempts", "attempt", after, until), lambda row: row["task_id"]
    )
    steps, tries = next(events, None), next(attempts, None)
    for task in _streamed(db, "tasks", "seq", after, until):
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


@contextmanager
def _snapshot(db: Db) -> Iterator[None]:
    db.execute("BEGIN")
    try:
        yield
    finally:
        with suppress(apsw.Error):  # of a damaged file; what it was is on its way already
            db.execute("COMMIT")


_AFTER_ALL = "~"  # no task's id begins with it
_COLUMNS = {
    "events": "task_id, seq, from_state, to_state, attempt, reason",
    "attempts": "task_id, attempt, state",
    "tasks": "task_id, state, failures, interruptions",
}


def _streamed(db: Db, table: str, then: str, after: str, until: str) -> Iterator[Row]:
    columns = _COLUMNS[table]
    names = columns.split(", ")
    sql = (
        f"SELECT {columns} FROM {table} WHERE task_id > ? AND task_id <= ? ORDER BY task_id, {then}"
    )
    for row in db.execute(sql, (after, until)):
        yield dict(zip(names, row, strict=True))


# Of both tables in the order of their names, some at a time.
_BLOBS = """SELECT sha256, size FROM blobs WHERE sha256 > ?
    UNION SELECT sha256, size FROM artifacts WHERE sha256 > ? ORDER BY sha256 LIMIT ?"""


def blob_problems(db: Db, blobs: Path, deep: bool) -> Iterator[Violation]:
    """Blobs that a row refers to, and the disk lacks (or, `deep`, holds with other bytes).

    No snapshot is held while bytes are read.
    """
    last = ""
    while some := fetch(db, _BLOBS, (last, last, _AT_ONCE)):
        for row in some:
            name, size = row["sha256"], row["size"]
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
        last = some[-1]["sha256"]


def _hash(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while piece := file.read(PIECE):
            digest.update(piece)
    return digest.hexdigest()
