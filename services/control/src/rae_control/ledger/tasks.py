"""Every transition of a task, each in one transaction with its event row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rae_control.core.retries import Limits, Verdict, after_interruption
from rae_control.ledger.schema import HOLDER
from rae_control.ledger.store import Moved, Row, Tx
from rae_protocol.errors import RaeError
from rae_protocol.models import canonical
from rae_protocol.names import TaskState as S
from rae_protocol.nodes import Progress

OWNERS = frozenset({"yield_owner", "yield_guard", "yield_paused"})  # for the people at the machine
LIVE = ("leased", "running")
_DUE_BYTES = 2 * 1024**2


@dataclass(frozen=True, slots=True)
class Who:
    """The node side of a transition, for the event row."""

    node_id: str | None = None
    slot: str | None = None
    attempt: int | None = None


def event(
    tx: Tx, reason: str, *, task: Row | None = None, who: Who = Who(), detail: Any = None,
    old: str | None = None, new: str | None = None,
) -> None:  # fmt: skip
    """Write one line of history."""
    tx.run(
        "INSERT INTO events (at, submitter, task_id, attempt, from_state, to_state, node_id, slot,"
        " reason, detail) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        tx.now, task and task["submitter"], task and task["task_id"], who.attempt, old, new,
        who.node_id, who.slot, reason, None if detail is None else json.dumps(detail),
    )  # fmt: skip


def get(tx: Tx, task_id: str) -> Row:
    """A task's row. Raises RaeError `unknown_task`."""
    row = tx.row("SELECT * FROM tasks WHERE task_id = ?", task_id)
    if row is None:
        raise RaeError("unknown_task", f"there is no task {task_id}")
    return row


def move(
    tx: Tx, task: Row, new: S, reason: str, *, who: Who = Who(), detail: Any = None, **columns: Any
) -> None:
    """The one way from a state to another: row, event and what memory must learn."""
    old = task["state"]
    values: dict[str, Any] = {"state": new.value, "reason": reason, "updated_at": tx.now, **columns}
    if new.final:
        values["finished_at"] = tx.now
    sets = ", ".join(f"{name} = ?" for name in values)
    changed = tx.run(
        f"UPDATE tasks SET {sets} WHERE seq = ? AND state = ?",
        *values.values(), task["seq"], old,
    )  # fmt: skip
    if changed != 1:
        raise RaeError("internal", f"task {task['task_id']} is not {old} any more")
    event(tx, reason, task=task, who=who, detail=detail, old=old, new=new.value)
    attempt = task if task["lease_id"] else {**task, **values}
    lease = (attempt["lease_id"], attempt["node_id"], attempt["slot"])
    task.update(values)
    _tell(tx, task, old, lease)
    if new.final:
        _release_dependents(tx, task)


def _tell(
    tx: Tx, task: Row, old: str | None, lease: tuple[str | None, str | None, str | None]
) -> None:
    oldest, requirements = None, "{}"
    if old == "queued":
        sql = "SELECT min(seq) AS seq FROM tasks WHERE lane_id = ? AND state = 'queued'"
        head = tx.row(sql, task["lane_id"])
        oldest = head["seq"] if head else None
    if task["state"] == "queued":
        lane = tx.row("SELECT requirements FROM lanes WHERE lane_id = ?", task["lane_id"])
        requirements = lane["requirements"] if lane else "{}"
    tx.moved.append(Moved(dict(task), old, task["state"], *lease, oldest, requirements))


def inserted(tx: Tx, task: Row) -> None:
    """A new row was written: its first event and its place in memory."""
    event(tx, task["reason"], task=task, old=None, new=task["state"])
    _tell(tx, task, None, (None, None, None))


def _release_dependents(tx: Tx, task: Row) -> None:
    """Tasks that waited for this one go on, or end with it (and theirs with them)."""
    tx.ended.append(task)
    if len(tx.ended) > 1:
        return  # the call below us works the list off: a long chain must not recurse
    while tx.ended:
        _release_of(tx, tx.ended[0])
        tx.ended.pop(0)


def _release_of(tx: Tx, task: Row) -> None:
    for dependent in tx.rows(
        "SELECT t.* FROM dependencies d JOIN tasks t USING (task_id)"
        " WHERE d.needs = ? AND t.state = 'waiting'",
        task["task_id"],
    ):
        if task["state"] == S.SUCCEEDED.value:
            dependent["unmet"] = max(0, dependent["unmet"] - 1)
            tx.run("UPDATE tasks SET unmet = ? WHERE seq = ?", dependent["unmet"], dependent["seq"])
            queue_if_due(tx, dependent)
        else:
            cause = f"{task['task_id']} ended as {task['state']}"
            error = json.dumps({"code": "E_INPUT", "message": f"dependency failed: {cause}"})
            move(tx, dependent, S.FAILED, "dependency_failed", detail=cause, error=error)


def queue_if_due(tx: Tx, task: Row, reason: str = "due") -> bool:
    """Queue a waiting task when nothing keeps it."""
    due = task["not_before"] is None or task["not_before"] <= tx.now
    if task["state"] != "waiting" or task["unmet"] or task["fence"] or not due:
        return False
    move(tx, task, S.QUEUED, reason)
    return True


def due(tx: Tx, limit: int = 500) -> int:
    """Queue some waiting tasks whose time has come; expire some that came too late.

    Returns how many: 0 when there is no more to do.
    """
    count = size = 0
    for found in tx.rows(
        "SELECT task_id FROM tasks WHERE state = 'waiting' AND unmet = 0 AND fence IS NULL"
        " AND (not_before IS NULL OR not_before <= ?) LIMIT ?",
        tx.now, limit,
    ) + tx.rows(
        "SELECT task_id FROM tasks WHERE expires_at <= ? AND state IN ('queued', 'waiting')"
        " LIMIT ?",
        tx.now, limit,
    ):  # fmt: skip
        # One whole row at a time, and not too many: others wait for the writer. An earlier one may
        # have ended this one as its dependent.
        task = get(tx, found["task_id"])
        if task["expires_at"] is not None and task["expires_at"] <= tx.now:
            if task["state"] in {"queued", "waiting"}:
                move(tx, task, S.EXPIRED, "expired")
                count += 1
        else:
            count += queue_if_due(tx, task)
        size += len(task["spec"])
        if size > _DUE_BYTES:
            break
    return count


def claim(
    tx: Tx, task_id: str, lease_id: str, who: Who, *, acked: bool, gpus: Mapping[str, Any]
) -> Row | None:
    """Lease a queued task to a node's slot; None when it is not queued any more.

    The attempt records the machine of the node's session (or that session, where it named none).
    """
    task = tx.row("SELECT * FROM tasks WHERE task_id = ? AND state = 'queued'", task_id)
    if task is None or (task["expires_at"] is not None and task["expires_at"] <= tx.now):
        return None
    attempt = task["attempts"] + 1
    who = Who(who.node_id, who.slot, attempt)
    tx.run(
        "INSERT INTO attempts (lease_id, task_id, attempt, node_id, slot, gpu_uuids, vram_mb,"
        f" state, claimed_at, acked_at, machine) SELECT ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, {HOLDER}"
        " FROM nodes WHERE node_id = ?",
        lease_id, task_id, attempt, who.node_id, who.slot, json.dumps(gpus.get("uuids")),
        gpus.get("vram_mb"), "running" if acked else "leased", tx.now, tx.now if acked else None,
        who.node_id,
    )  # fmt: skip
    move(
        tx, task, S.LEASED, "claimed", who=who, attempts=attempt, lease_id=lease_id,
        node_id=who.node_id, slot=who.slot, progress=None, note=None,
    )  # fmt: skip
    if acked:
        move(tx, task, S.RUNNING, "acked", who=who)
    return task


def open_attempt(
    tx: Tx, call: str, node_id: str, task_id: str, attempt: int | None, lease_id: str | None
) -> Row | None:
    """The task of an open lease of this node; None when it is over, which history then tells.

    Without attempt and lease (`bearer` clients) the node's own lease of that task is meant.
    """
    if lease_id is None:
        sql = "SELECT * FROM tasks WHERE task_id = ? AND node_id = ? AND lease_id IS NOT NULL"
        task = tx.row(sql, task_id, node_id)
    else:
        task = tx.row("SELECT * FROM tasks WHERE lease_id = ?", lease_id)
    if (
        task is not None
        and task["task_id"] == task_id
        and task["node_id"] == node_id
        and attempt in {None, task["attempts"]}
    ):
        return task
    known = tx.row("SELECT * FROM tasks WHERE task_id = ?", task_id)
    if known is not None:
        event(tx, f"stale_{call}", task=known, who=Who(node_id, None, attempt))
    return None


def end_attempt(tx: Tx, task: Row, state: str, reason: str, digest: str | None = None) -> Who:
    """Close the open attempt of a task; returns who it was."""
    who = Who(task["node_id"], task["slot"], task["attempts"])
    tx.run(
        "UPDATE attempts SET state = ?, reason = ?, ended_at = ?, result_sha256 = ?"
        " WHERE lease_id = ?",
        state, reason, tx.now, digest, task["lease_id"],
    )  # fmt: skip
    return who


def digest_of(outcome: Any, artifacts: Sequence[tuple[str, str]]) -> str:
    """What makes two results the same: the outcome and the artifacts' names and hashes."""
    return hashlib.sha256(canonical([outcome, sorted(artifacts)])).hexdigest()


NO_LEASE: dict[str, Any] = {"lease_id": None, "node_id": None, "slot": None}


def ack(tx: Tx, task: Row) -> None:
    """The node takes the task on. The same ack again changes nothing."""
    if task["state"] == "running":
        return
    tx.run(
        "UPDATE attempts SET state = 'running', acked_at = ? WHERE lease_id = ?",
        tx.now, task["lease_id"],
    )  # fmt: skip
    who = Who(task["node_id"], task["slot"], task["attempts"])
    move(tx, task, S.RUNNING, "acked", who=who)


def progress(tx: Tx, task: Row, report: Progress) -> None:
    """How far the attempt is; not history."""
    sql = "UPDATE tasks SET progress = ?, note = ?, updated_at = ? WHERE seq = ?"
    tx.run(sql, report.pct, report.note, tx.now, task["seq"])


def unack(tx: Tx, lease_id: str) -> None:
    """No ack came: back to the lane, nothing counted."""
    task = tx.row("SELECT * FROM tasks WHERE lease_id = ? AND state = 'leased'", lease_id)
    if task is not None:
        who = end_attempt(tx, task, "unacked", "no_ack")
        move(tx, task, S.QUEUED, "no_ack", who=who, **NO_LEASE)


def interrupt(
    tx: Tx, lease_id: str, reason: str, limits: Limits, *, fenced: bool, detail: Any = None,
    digest: str | None = None,
) -> Row | None:  # fmt: skip
    """A lease ends without the task's fault. `fenced`: the attempt may still be alive."""
    task = tx.row("SELECT * FROM tasks WHERE lease_id = ?", lease_id)
    if task is None:
        return None
    total, in_row = task["interruptions"] + 1, task["in_row"] + 1
    verdict = after_interruption(reason, total, in_row, limits)
    again(
        tx, task, verdict, "interrupted", reason, detail=detail, digest=digest,
        fence=lease_id if fenced and task["state"] == "running" else None,
        interruptions=total, in_row=in_row,
    )  # fmt: skip
    return task


def again(
    tx: Tx, task: Row, verdict: Verdict, attempt_state: str, reason: str, *,
    detail: Any = None, digest: str | None = None, fence: str | None = None, **columns: Any,
) -> None:  # fmt: skip
    """After an attempt without success: end the task, let it wait, or queue it at once."""
    who = end_attempt(tx, task, attempt_state, reason, digest)
    columns = {**columns, **NO_LEASE, "fence": fence}
    if verdict.final:
        if "error" not in columns:
            code = "E_YIELD" if reason in OWNERS else "E_LOST"
            message = (
                f"Interrupted too often ({columns.get('interruptions')}, the last one: {reason}); "
                "submit it again when nodes are free for longer, or in smaller pieces"
            )
            columns["error"] = json.dumps({"code": code, "message": message})
        move(tx, task, S.FAILED, verdict.reason, who=who, detail=detail, **columns)
    elif verdict.pause_s > 0 or fence:
        later = tx.now + verdict.pause_s
        move(
            tx, task, S.WAITING, verdict.reason, who=who, detail=detail, not_before=later, **columns
        )
    else:
        move(tx, task, S.QUEUED, verdict.reason, who=who, detail=detail, **columns)


def succeed(
    tx: Tx, task: Row, result: str | None, artifacts: list[tuple[str, str, int, str]], digest: str
) -> None:
    """Write the result; `artifacts` are (name, sha256, size, type)."""
    who = end_attempt(tx, task, "succeeded", "succeeded", digest)
    tx.run("DELETE FROM artifacts WHERE task_id = ?", task["task_id"])
    for name, sha256, size, kind in artifacts:
        tx.run(
            "INSERT INTO artifacts (task_id, name, attempt, sha256, size, type)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            task["task_id"], name, task["attempts"], sha256, size, kind,
        )  # fmt: skip
    move(
        tx, task, S.SUCCEEDED, "succeeded", who=who, result=result, error=None, progress=100.0,
        in_row=0, lease_id=None,
    )  # fmt: skip


def cancel(tx: Tx, task: Row, reason: str | None) -> str | None:
    """Cancel; returns the lease that must be stopped on its node. Again on a cancelled task: None.

    Raises RaeError `already_finished`.
    """
    state = task["state"]
    if state == "cancelled":
        return None
    if S(state).final:
        raise RaeError("already_finished", f"task {task['task_id']} is {state}", state=state)
    lease: str | None = task["lease_id"]
    who = end_attempt(tx, task, "cancelled", "cancelled") if lease else Who()
    # The fence keeps a requeued task waiting until the cancelled attempt is surely dead. Without
    # an ack nothing runs: the node asks before it starts.
    move(
        tx, task, S.CANCELLED, "cancelled", who=who, detail=reason,
        lease_id=None, fence=lease if state == "running" else task["fence"],
    )  # fmt: skip
    return lease


def requeue(tx: Tx, task: Row, reason: str | None) -> None:
    """Start an ended task afresh. Raises RaeError `not_requeueable`."""
    if task["state"] not in {"failed", "cancelled", "expired"}:
        raise RaeError("not_requeueable", f"task {task['task_id']} is {task['state']}")
    needs = tx.rows(
        "SELECT n.task_id, n.state FROM dependencies d JOIN tasks n ON n.task_id = d.needs"
        " WHERE d.task_id = ?",
        task["task_id"],
    )
    broken = [n["task_id"] for n in needs if S(n["state"]).final and n["state"] != "succeeded"]
    if broken:
        raise RaeError("not_requeueable", f"it depends on {broken[0]}, which did not succeed")
    open_needs = sum(n["state"] != "succeeded" for n in needs)
    fresh = {
        "failures": 0, "interruptions": 0, "in_row": 0, "unmet": open_needs, "not_before": None,
        "expires_at": None, "finished_at": None, "error": None, "result": None, "progress": None,
        "note": None, **NO_LEASE,
    }  # fmt: skip
    move(tx, task, S.WAITING, "requeued", detail=reason, **fresh)
    queue_if_due(tx, task, "requeued")


def clear_fence(tx: Tx, lease_id: str) -> None:
    """The cut-off attempt is surely dead: a requeued task may start."""
    task = tx.row("SELECT * FROM tasks WHERE fence = ?", lease_id)
    if task is not None:
        tx.run("UPDATE tasks SET fence = NULL WHERE seq = ?", task["seq"])
        task["fence"] = None
        queue_if_due(tx, task)
