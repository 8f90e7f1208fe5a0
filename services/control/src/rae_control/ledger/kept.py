"""What the ended tasks of each submitter take of the ledger, and what goes when it is too much."""

from __future__ import annotations

from collections.abc import Callable

from rae_control.ledger.base import Db, Row, Tx, fetch
from rae_control.ledger.schema import KEPT

# The spec of a task whose spec and result were dropped; its `spec_bytes` are 0.
NO_SPEC = "null"


def ended(tx: Tx, seq: int) -> None:
    """The task counts from now on, with all of its history."""
    if tx.row("SELECT 1 FROM tasks WHERE seq = ? AND kept_record > 0", seq):
        gone(tx, seq)
    _count(tx, tx.rows(
        f"UPDATE tasks AS t SET {KEPT} WHERE seq = ? RETURNING submitter, kept_bytes, kept_record",
        seq,
    )[0], 1)  # fmt: skip


def afresh(tx: Tx, seq: int) -> None:
    """The task starts afresh: its record goes on to count, or requeues would fill the disk."""
    sql = "SELECT submitter, kept_bytes, 0 AS kept_record FROM tasks WHERE seq = ?"
    _count(tx, tx.rows(sql, seq)[0], -1)
    tx.run("UPDATE tasks SET kept_bytes = 0 WHERE seq = ?", seq)


def gone(tx: Tx, seq: int) -> None:
    """The task counts no more: it is about to be removed."""
    sql = "SELECT submitter, kept_bytes, kept_record FROM tasks WHERE seq = ?"
    _count(tx, tx.rows(sql, seq)[0], -1)
    tx.run("UPDATE tasks SET kept_bytes = 0, kept_record = 0 WHERE seq = ?", seq)


def trim(tx: Tx, go_on: Callable[[], bool], most: int) -> int:
    """Drop the oldest specs and results of ended tasks where a submitter has more than `most`.

    Stops when `go_on` says that others wait for the writer. Returns how many tasks: 0 when there is
    no more to do.
    """
    done = 0
    while not done or go_on():
        task = tx.row(
            "SELECT seq, task_id, submitter, kept_bytes, 0 AS kept_record FROM tasks"
            " WHERE submitter = (SELECT submitter FROM kept WHERE bytes > ? LIMIT 1)"
            " AND kept_bytes > 0 ORDER BY finished_at LIMIT 1",
            most,
        )
        if task is None:
            break
        _count(tx, task, -1)
        tx.run("UPDATE tasks SET spec_bytes = 0, kept_bytes = 0 WHERE seq = ?", task["seq"])
        tx.run("UPDATE specs SET spec = ? WHERE seq = ?", NO_SPEC, task["seq"])
        tx.run("DELETE FROM results WHERE seq = ?", task["seq"])
        tx.run("DELETE FROM task_blobs WHERE task_id = ?", task["task_id"])
        done += 1
    return done


def record_of(db: Db, submitter: str) -> int:
    """Bytes of the records of a submitter's ended and requeued tasks."""
    rows = fetch(db, "SELECT record FROM kept WHERE submitter = ?", (submitter,))
    return int(rows[0]["record"]) if rows else 0


def _count(tx: Tx, task: Row, sign: int) -> None:
    tx.run(
        "INSERT INTO kept VALUES (?, ?, ?) ON CONFLICT DO UPDATE"
        " SET bytes = bytes + excluded.bytes, record = record + excluded.record",
        task["submitter"], sign * task["kept_bytes"], sign * task["kept_record"],
    )  # fmt: skip
