"""What time alone does to tasks: pauses end, and who came too late expires."""

from __future__ import annotations

from collections.abc import Callable

from rae_control.ledger.base import Tx
from rae_control.ledger.tasks import get, move, queue_if_due
from rae_protocol.names import TaskState as S

# By name: left to itself, SQLite looks at every task that waits or is queued.
_DUE = """SELECT task_id FROM tasks INDEXED BY tasks_due
    WHERE state = 'waiting' AND unmet = 0 AND fence IS NULL AND not_before"""
_LATE = """SELECT task_id FROM tasks INDEXED BY tasks_expiring
    WHERE expires_at <= ? AND state IN ('queued', 'waiting') LIMIT ?"""


def due(tx: Tx, go_on: Callable[[], bool], limit: int = 100) -> int:
    """Queue some waiting tasks whose time has come; expire some that came too late.

    Stops at the limit, or when `go_on` says that others wait for the writer. Returns how many: 0
    when there is no more to do.
    """
    count = 0
    for found in tx.rows(
        f"{_DUE} IS NULL UNION ALL {_DUE} <= ? LIMIT ?", tx.earliest, limit
    ) + tx.rows(_LATE, tx.earliest, limit):
        if count and not go_on():
            break
        # An earlier one may have ended this one as its dependent.
        task = get(tx, found["task_id"])
        if task["expires_at"] is not None and task["expires_at"] <= tx.earliest:
            if task["state"] in {"queued", "waiting"}:
                move(tx, task, S.EXPIRED, "expired")
                count += 1
        else:
            count += queue_if_due(tx, task)
    return count


def shift_pauses(tx: Tx, seconds: float, longest_s: float) -> None:
    """The time by which pauses end has stepped: move them along. Submitters' own times stay."""
    tx.run(
        "UPDATE tasks SET not_before = min(not_before + ?, ?) WHERE state = 'waiting'"
        " AND not_before IS NOT NULL AND reason NOT IN ('submitted', 'requeued')",
        seconds, tx.earliest + longest_s,
    )  # fmt: skip
