"""What is left of finished work after its time: a line of counts for each day."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import inf
from typing import Any

from rae_control.ledger import kept
from rae_control.ledger.base import Db, Row, Tx, fetch
from rae_control.ledger.schema import LABELS

# Whatever still stands in somebody's dependencies stays: a live or a requeued task may need it.
_OVER = """SELECT seq, task_id, submitter, state, attempts, kept_record FROM tasks t
    WHERE finished_at < ? AND fence IS NULL
    AND state IN ('succeeded', 'failed', 'cancelled', 'expired')
    AND NOT EXISTS (SELECT 1 FROM dependencies d WHERE d.needs = t.task_id)"""


def over(db: Db, before: float, limit: int) -> list[str]:
    """Some tasks that ended before and that no other needs. For a reader: it may look at many."""
    rows = fetch(db, f"{_OVER} ORDER BY finished_at LIMIT ?", (before, limit))
    return [row["task_id"] for row in rows]


def beyond(db: Db, most: int, limit: int) -> list[str]:
    """Some of the oldest ended tasks of those whose records take more than `most` bytes."""
    names: list[str] = []
    for who in fetch(db, "SELECT submitter, record FROM kept WHERE record > ?", (most,)):
        sql = f"{_OVER} AND submitter = ? ORDER BY finished_at LIMIT ?"
        for row in fetch(db, sql, (inf, who["submitter"], limit)):
            if who["record"] <= most:
                break
            names.append(row["task_id"])
            who["record"] -= row["kept_record"]
    return names


def summarise(tx: Tx, go_on: Callable[[], bool], names: Sequence[str], before: float) -> list[Row]:
    """Summarise and delete these, and what only they need, if they still are over.

    Stops when `go_on` says that others wait for the writer. Returns ids, states and attempts.
    """
    done: list[Row] = []
    work = [row for name in names for row in tx.rows(f"{_OVER} AND task_id = ?", before, name)]
    while work and (not done or go_on()):
        task = work.pop()
        needs = tx.rows("SELECT needs FROM dependencies WHERE task_id = ?", task["task_id"])
        _summarise_one(tx, task)
        done.append(task)
        # A chain goes from its end to its beginning, and not one link a batch.
        for need in needs:
            work += tx.rows(f"{_OVER} AND task_id = ?", before, need["needs"])
    return done


def removed_events_key(submitter: str | None) -> str:
    """Under which `meta` has the largest seq of a removed event of the submitter (None: of all)."""
    return "events_removed" if submitter is None else f"events_removed {submitter}"


def _note_removed(tx: Tx, submitter: str | None, where: str, *values: Any) -> None:
    """Note which events go, for those who read on from a cursor before them."""
    tx.run(
        f"INSERT INTO meta SELECT ?, max(seq) FROM events WHERE {where} HAVING count(*)"
        " ON CONFLICT (key) DO UPDATE"
        " SET value = max(CAST(value AS INTEGER), CAST(excluded.value AS INTEGER))",
        removed_events_key(submitter), *values,
    )  # fmt: skip


def _summarise_one(tx: Tx, task: Row) -> None:
    for submitter in (None, task["submitter"]):
        _note_removed(tx, submitter, "task_id = ?", task["task_id"])
    tx.run(
        "INSERT INTO summaries SELECT date(finished_at, 'unixepoch'), submitter, kind, state, 1,"
        " attempts, failures, interruptions, (SELECT coalesce(sum(a.ended_at - a.acked_at), 0)"
        " FROM attempts a WHERE a.task_id = t.task_id) FROM tasks t WHERE seq = ?"
        " ON CONFLICT DO UPDATE SET tasks = tasks + 1, attempts = attempts + excluded.attempts,"
        " failures = failures + excluded.failures,"
        " interruptions = interruptions + excluded.interruptions,"
        " seconds = seconds + excluded.seconds",
        task["seq"],
    )
    kept.gone(tx, task["seq"])
    for table in ("attempts", "events", "artifacts", "task_blobs", "dependencies", "tasks"):
        tx.run(f"DELETE FROM {table} WHERE task_id = ?", task["task_id"])
    labels = f"SELECT label FROM ({LABELS} WHERE seq = ?)"
    tx.run(f"DELETE FROM labels WHERE label IN ({labels}) AND seq = ?", task["seq"], task["seq"])
    for table in ("specs", "results"):
        tx.run(f"DELETE FROM {table} WHERE seq = ?", task["seq"])


def empty_lanes(db: Db) -> tuple[list[str], int]:
    """Lanes that no task refers to, and the newest task that was looked at."""
    newest = fetch(db, "SELECT coalesce(max(seq), 0) AS seq FROM tasks")[0]["seq"]
    rows = fetch(db, "SELECT lane_id FROM lanes EXCEPT SELECT lane_id FROM tasks")
    return [row["lane_id"] for row in rows], newest


def drop_lanes(tx: Tx, lanes: Sequence[str], newest: int) -> None:
    """Delete them, unless a task came since."""
    for lane_id in lanes:
        tx.run(
            "DELETE FROM lanes WHERE lane_id = ? AND NOT EXISTS"
            " (SELECT 1 FROM tasks WHERE seq > ? AND lane_id = lanes.lane_id)",
            lane_id, newest,
        )  # fmt: skip


def forget_node_events(tx: Tx, before: float, limit: int) -> int:
    """Delete what happened to nodes, not to tasks, that long ago; returns how many."""
    # The oldest by their numbers, not all that there are.
    oldest = "SELECT seq, at FROM events WHERE task_id IS NULL ORDER BY seq LIMIT ?"
    some = f"seq IN (SELECT seq FROM ({oldest}) WHERE at < ?)"
    _note_removed(tx, None, some, limit, before)
    return tx.run(f"DELETE FROM events WHERE {some}", limit, before)


def unknown_tasks(db: Db, names: Sequence[str]) -> list[str]:
    """Those of the ids that no task has."""
    return [n for n in names if not fetch(db, "SELECT 1 FROM tasks WHERE task_id = ?", (n,))]


def unknown(db: Db, names: Sequence[str]) -> list[str]:
    """Those of the blobs that no row knows."""
    return [
        name
        for name in names
        if not fetch(
            db,
            "SELECT 1 FROM blobs WHERE sha256 = ? UNION ALL"
            " SELECT 1 FROM artifacts WHERE sha256 = ? LIMIT 1",
            (name, name),
        )
    ]
