"""What a submitter may do to a task: cancel it, or have it start afresh."""

from __future__ import annotations

import json
from collections.abc import Callable

from rae_control.ledger import tasks
from rae_control.ledger.base import Db, Row, Tx, fetch
from rae_control.ledger.schema import OPEN_NEED
from rae_control.ledger.submit import of_key
from rae_protocol.errors import RaeError
from rae_protocol.names import MAX_HISTORY
from rae_protocol.names import TaskState as S

# A circle of cancels and requeues ends here.
_HISTORY = "SELECT 1 FROM events WHERE task_id = ? LIMIT ?"
DROPPED = "newer tasks of the submitter needed the room"


def cancel(tx: Tx, task: Row, reason: str | None) -> str | None:
    """Cancel; returns the lease that must be stopped on its node. Again on a cancelled task: None.

    Raises RaeError `already_finished`.
    """
    state = task["state"]
    if state == "cancelled":
        return None
    if S(state).final:
        cause = f"task {task['task_id']} has ended: it is {state}"
        raise RaeError("already_finished", cause, state=state)
    lease: str | None = task["lease_id"]
    who = tasks.end_attempt(tx, task, "cancelled", "cancelled") if lease else tasks.Who()
    # The fence keeps a requeued task waiting until the cancelled attempt is surely dead. Without
    # an ack nothing runs: the node asks before it starts.
    tasks.move(
        tx, task, S.CANCELLED, "cancelled", who=who, detail=reason,
        lease_id=None, fence=lease if state == "running" else task["fence"],
    )  # fmt: skip
    return lease


def requeue(tx: Tx, task: Row, reason: str | None, limits: Callable[[Tx, str], None]) -> None:
    """Start an ended task afresh. Raises RaeError `not_requeueable`, or what `limits` raises.

    Not before all who waited for it have ended, too: see `releasing`.
    """
    if releasing(tx.db, task["task_id"]):
        raise RaeError("not_requeueable", f"tasks that need {task['task_id']} are about to end")
    if task["state"] not in {"failed", "cancelled", "expired"}:
        cause = f"task {task['task_id']} is {task['state']}"
        only = "only failed, cancelled and expired tasks queue again"
        raise RaeError("not_requeueable", f"{cause}, and {only}")
    if not task["spec_bytes"]:
        raise RaeError("not_requeueable", f"the spec of {task['task_id']} was dropped: {DROPPED}")
    if len(tx.rows(_HISTORY, task["task_id"], MAX_HISTORY)) == MAX_HISTORY:
        cause = f"the history of task {task['task_id']} has {MAX_HISTORY} lines or more"
        raise RaeError("not_requeueable", cause)
    if task["idempotency_key"] is not None and (
        twin := of_key(tx, task["submitter"], task["idempotency_key"])
    ):
        cause = f"task {twin['task_id']} with the same idempotency key is {twin['state']}"
        raise RaeError("not_requeueable", cause)
    needs = tx.rows(
        f"SELECT n.task_id, n.state, {OPEN_NEED} AS open FROM dependencies d"
        " JOIN tasks n ON n.task_id = d.needs WHERE d.task_id = ?",
        task["task_id"],
    )
    broken = [n["task_id"] for n in needs if S(n["state"]).final and n["state"] != "succeeded"]
    if broken:
        raise RaeError("not_requeueable", f"it depends on {broken[0]}, which did not succeed")
    open_needs = sum(n["open"] for n in needs)
    found = tx.row("SELECT requirements FROM lanes WHERE lane_id = ?", task["lane_id"])
    wanted = json.loads(found["requirements"] if found else "{}")
    # Nodes that denied it may have other allow-lists by now.
    lane = task["lane_id"]
    if wanted.pop("not_nodes", None):
        lane = tasks.keep_lane(tx, task, wanted)
    fresh = {
        "failures": 0, "interruptions": 0, "in_row": 0, "unmet": open_needs, "not_before": None,
        "expires_at": None, "finished_at": None, "error": None, "progress": None, "note": None,
        "avoid": None, "lane_id": lane, **tasks.NO_LEASE,
    }  # fmt: skip
    tasks.keep_result(tx, task, None)
    tasks.move(tx, task, S.WAITING, "requeued", detail=reason, **fresh)
    tasks.queue_if_due(tx, task, "requeued")
    limits(tx, task["submitter"])


def releasing(db: Db, task_id: str) -> bool:
    """Whether tasks that waited for this one, which has ended, do not know it yet."""
    return bool(fetch(db, "SELECT 1 FROM releases WHERE needs = ?", (task_id,)))
