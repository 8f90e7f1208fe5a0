"""What is left of finished work after its time: a line of counts for each day."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import apsw

from rae_control.ledger.store import Row, Tx, fetch

# Whatever still stands in somebody's dependencies stays: a live or a requeued task may need it.
_OVER = """SELECT seq, task_id, state, attempts FROM tasks t WHERE finished_at < ? AND fence IS NULL
    AND state IN ('succeeded', 'failed', 'cancelled', 'expired')
    AND NOT EXISTS (SELECT 1 FROM dependencies d WHERE d.needs = t.task_id)"""


def summarise(tx: Tx, before: float, limit: int, go_on: Callable[[], bool]) -> list[Row]:
    """Summarise and delete some tasks that ended before; returns their ids, states and attempts.

    Stops at the limit, or when `go_on` says that others wait for the writer.
    """
    done: list[Row] = []
    work = tx.rows(f"{_OVER} ORDER BY finished_at LIMIT ?", before, limit)
    while work and len(done) < limit and (not done or go_on()):
        task = work.pop()
        needs = tx.rows("SELECT needs FROM dependencies WHERE task_id = ?", task["task_id"])
        _summarise_one(tx, task)
        done.append(task)
        # A chain goes from its end to its beginning, and not one link a batch.
        for need in needs:
            work += tx.rows(f"{_OVER} AND task_id = ?", before, need["needs"])
    return done


def _summarise_one(tx: Tx, task: Row) -> None:
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
    for table in ("attempts", "events", "artifacts", "task_blobs", "dependencies", "tasks"):
        tx.run(f"DELETE FROM {table} WHERE task_id = ?", task["task_id"])


_UNREAD = """created_at < ? AND NOT EXISTS (SELECT 1 FROM task_blobs r JOIN tasks t USING (task_id)
    WHERE r.sha256 = blobs.sha256 AND t.submitter = blobs.submitter)"""


def unread_blobs(db: apsw.Connection, before: float) -> list[tuple[str, str]]:
    """Uploads (sha256, submitter) that no task reads."""
    rows = fetch(db, f"SELECT sha256, submitter FROM blobs WHERE {_UNREAD}", (before,))
    return [(row["sha256"], row["submitter"]) for row in rows]


def drop_blobs(tx: Tx, blobs: Sequence[tuple[str, str]], before: float) -> None:
    """Forget those that still nobody reads; their bytes go when nobody else has them."""
    for sha256, submitter in blobs:
        tx.run(
            f"DELETE FROM blobs WHERE sha256 = ? AND submitter = ? AND {_UNREAD}",
            sha256, submitter, before,
        )  # fmt: skip


def empty_lanes(db: apsw.Connection) -> tuple[list[str], int]:
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
    return tx.run(
        "DELETE FROM events WHERE seq IN (SELECT seq FROM events WHERE task_id IS NULL"
        " AND at < ? LIMIT ?)",
        before, limit,
    )  # fmt: skip


def unknown_tasks(db: apsw.Connection, names: Sequence[str]) -> list[str]:
    """Those of the ids that no task has."""
    return [n for n in names if not fetch(db, "SELECT 1 FROM tasks WHERE task_id = ?", (n,))]


def unknown(db: apsw.Connection, names: Sequence[str]) -> list[str]:
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
