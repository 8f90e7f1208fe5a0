"""Every transition of a task, each in one transaction with its event row."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rae_control.core.lanes import lane_id
from rae_control.core.retries import NO_ACK, NO_CHARGE, Limits, Verdict, after_interruption
from rae_control.ledger import kept
from rae_control.ledger.base import Moved, Row, Tx
from rae_control.ledger.schema import HOLDER
from rae_protocol.errors import RaeError
from rae_protocol.models import canonical
from rae_protocol.names import TaskState as S
from rae_protocol.nodes import Progress
from rae_protocol.tasks import TaskSpec

OWNERS = frozenset({"yield_owner", "yield_guard", "yield_paused"})  # for the people at the machine
LIVE = ("leased", "running")
_LOOK_AT = 100


@dataclass(frozen=True, slots=True)
class Who:
    """The node side of a transition, for the event row."""

    node_id: str | None = None
    slot: str | None = None
    attempt: int | None = None


def event(
    tx: Tx, reason: str, *, task: Row | None = None, who: Who = Who(), detail: Any = None,
    old: str | None = None, new: str | None = None,
) -> int:  # fmt: skip
    """Write one line of history; returns its number."""
    tx.changes.events.add(task["submitter"] if task else None)
    tx.run(
        "INSERT INTO events (at, submitter, task_id, attempt, from_state, to_state, node_id, slot,"
        " reason, detail) VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        tx.now, task and task["submitter"], task and task["task_id"], who.attempt, old, new,
        who.node_id, who.slot, reason, None if detail is None else json.dumps(detail),
    )  # fmt: skip
    return tx.db.last_insert_rowid()


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
        values["finished_at"] = tx.latest
    sets = ", ".join(f"{name} = ?" for name in values)
    changed = tx.run(
        f"UPDATE tasks SET {sets} WHERE seq = ? AND state = ?",
        *values.values(), task["seq"], old,
    )  # fmt: skip
    if changed != 1:
        raise RaeError("internal", f"task {task['task_id']} is not {old} any more")
    line = event(tx, reason, task=task, who=who, detail=detail, old=old, new=new.value)
    attempt = task if task["lease_id"] else {**task, **values}
    lease = (attempt["lease_id"], attempt["node_id"], attempt["slot"])
    lane_before = task["lane_id"]
    task.update(values)
    _tell(tx, task, old, line, lease, lane_before)
    if new.final:
        kept.ended(tx, task["seq"])
        _release_dependents(tx, task)
    elif S(old).final:
        kept.afresh(tx, task["seq"])


def _tell(
    tx: Tx, task: Row, old: str | None, line: int,
    lease: tuple[str | None, str | None, str | None], lane_before: str,
) -> None:  # fmt: skip
    oldest, requirements = None, "{}"
    if old == "queued":
        sql = "SELECT min(seq) AS seq FROM tasks WHERE lane_id = ? AND state = 'queued'"
        head = tx.row(sql, task["lane_id"])
        oldest = head["seq"] if head else None
    if task["state"] == "queued":
        lane = tx.row("SELECT requirements FROM lanes WHERE lane_id = ?", task["lane_id"])
        requirements = lane["requirements"] if lane else "{}"
    moved = Moved(dict(task), old, task["state"], *lease, line, lane_before, oldest, requirements)
    tx.changes.moved.append(moved)


def keep_lane(tx: Tx, task: Row, needs: Mapping[str, Any]) -> str:
    """The lane of a task with these needs; it is made if it is not there."""
    lane = lane_id(task["priority"], task["submitter"], needs)
    tx.run("INSERT OR IGNORE INTO lanes VALUES (?, ?)", lane, canonical(needs).decode())
    return lane


def inserted(tx: Tx, tasks: Sequence[tuple[Row, str]]) -> None:
    """New rows were written, in lanes with these needs: their first events, and memory."""
    tx.changes.events.update(task["submitter"] for task, _ in tasks)
    lines = tx.insert("events", [
        {"at": tx.now, "submitter": task["submitter"], "task_id": task["task_id"],
         "to_state": task["state"], "reason": task["reason"]}
        for task, _ in tasks
    ])  # fmt: skip
    for (task, requirements), line in zip(tasks, lines, strict=True):
        common = dict(task), None, task["state"], None, None, None, line, task["lane_id"]
        tx.changes.moved.append(Moved(*common, requirements=requirements))


def _release_dependents(tx: Tx, task: Row) -> None:
    """Tasks that waited for this one go on, or end with it (and theirs with them).

    Noted first: what is more than a short transaction can hold is left to the reaper.
    """
    task_id = task["task_id"]
    if tx.row("SELECT 1 FROM dependencies WHERE needs = ? LIMIT 1", task_id):
        tx.run("INSERT INTO releases VALUES (?, '')", task_id)
        if not tx.releasing:  # else the call below us works it off: a chain must not recurse
            release(tx, tx.in_time)


def release(tx: Tx, go_on: Callable[[], bool], needs: str = "") -> int:
    """Let some tasks go that waited for ended ones, first for `needs`, until `go_on` says no.

    Returns how many: 0 when there is no more to do.
    """
    done, tx.releasing = 0, True
    sql = "SELECT r.needs, r.after, t.state FROM releases r JOIN tasks t ON t.task_id = r.needs"
    while found := (tx.row(f"{sql} WHERE r.needs = ?", needs) if needs else None) or tx.row(
        f"{sql} LIMIT 1"
    ):
        after = found["after"]
        some = tx.rows(
            "SELECT task_id FROM dependencies WHERE needs = ? AND task_id > ?"
            " ORDER BY task_id LIMIT ?",
            found["needs"], after, _LOOK_AT,
        )  # fmt: skip
        for dependent in some if not done or go_on() else ():
            _let_go(tx, found, get(tx, dependent["task_id"]))
            done, after = done + 1, dependent["task_id"]
            if not go_on():
                break
        if after == (some[-1]["task_id"] if some else after) and len(some) < _LOOK_AT:
            tx.run("DELETE FROM releases WHERE needs = ?", found["needs"])
        else:
            tx.run("UPDATE releases SET after = ? WHERE needs = ?", after, found["needs"])
            if not go_on():
                break
    tx.releasing = False
    return done


def _let_go(tx: Tx, need: Row, dependent: Row) -> None:
    if dependent["state"] != "waiting":
        return
    if need["state"] == S.SUCCEEDED.value:
        dependent["unmet"] -= 1
        tx.run("UPDATE tasks SET unmet = ? WHERE seq = ?", dependent["unmet"], dependent["seq"])
        queue_if_due(tx, dependent)
    else:
        cause = f"{need['needs']} ended as {need['state']}"
        error = json.dumps({"code": "E_INPUT", "message": f"dependency failed: {cause}"})
        move(tx, dependent, S.FAILED, "dependency_failed", detail=cause, error=error)


def queue_if_due(tx: Tx, task: Row, reason: str = "due") -> bool:
    """Queue a waiting task when nothing keeps it."""
    due = task["not_before"] is None or task["not_before"] <= tx.earliest
    if task["state"] != "waiting" or task["unmet"] or task["fence"] or not due:
        return False
    move(tx, task, S.QUEUED, reason)
    return True


def claim(
    tx: Tx, task: Row, lease_id: str, who: Who, *, acked: bool, gpus: Mapping[str, Any]
) -> None:
    """Lease a queued task to a node's slot.

    The attempt records the machine of the node's session (or that session, where it named none).
    """
    task_id = task["task_id"]
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
    _note_stale(tx, call, node_id, task_id, lease_id)
    return None


def _note_stale(tx: Tx, call: str, node_id: str, task_id: str, lease_id: str | None) -> None:
    """One line of history for each kind of call on an attempt that this node really had.

    Without a lease its last attempt of the task is meant. The number is ours, not the caller's.
    """
    past = tx.row(
        "SELECT attempt FROM attempts WHERE task_id = ? AND node_id = ?"
        " AND (? IS NULL OR lease_id = ?) ORDER BY attempt DESC LIMIT 1",
        task_id, node_id, lease_id, lease_id,
    )  # fmt: skip
    if past is None:
        return
    reason, attempt = f"stale_{call}", past["attempt"]
    if tx.row(
        "SELECT 1 FROM events WHERE task_id = ? AND reason = ? AND attempt = ? AND node_id = ?",
        task_id, reason, attempt, node_id,
    ):  # fmt: skip
        return
    event(tx, reason, task=get(tx, task_id), who=Who(node_id, None, attempt))


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


def unack(tx: Tx, lease_id: str, limits: Limits) -> None:
    """No ack came: back to the lane, and to other nodes first. Nothing is charged.

    From the third in a row it waits a while: a node may claim for ever and never ack.
    """
    task = tx.row("SELECT * FROM tasks WHERE lease_id = ? AND state = 'leased'", lease_id)
    if task is not None:
        in_row = task["in_row"] + 1
        verdict = after_interruption(NO_ACK, task["interruptions"], in_row, limits)
        avoid = json.dumps(sorted({*json.loads(task["avoid"] or "[]"), task["node_id"]}))
        again(tx, task, verdict, "unacked", NO_ACK, in_row=in_row, avoid=avoid)


def interrupt(
    tx: Tx, lease_id: str, reason: str, limits: Limits, *, fenced: bool, detail: Any = None,
    digest: str | None = None,
) -> Row | None:  # fmt: skip
    """A lease ends without the task's fault. `fenced`: the attempt may still be alive.

    What is not charged only makes the pause longer, so that it does not run in a circle.
    """
    task = tx.row("SELECT * FROM tasks WHERE lease_id = ?", lease_id)
    if task is None:
        return None
    charged = reason not in NO_CHARGE
    total, in_row = task["interruptions"] + charged, task["in_row"] + 1
    verdict = after_interruption(reason, total, in_row, limits)
    ended_as = "interrupted" if charged else "uncharged"
    again(
        tx, task, verdict, ended_as, reason, detail=detail, digest=digest,
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
        later = tx.earliest + verdict.pause_s
        move(
            tx, task, S.WAITING, verdict.reason, who=who, detail=detail, not_before=later, **columns
        )
    else:
        move(tx, task, S.QUEUED, verdict.reason, who=who, detail=detail, **columns)


def spec_of(tx: Tx, task: Row) -> TaskSpec:
    """What was submitted: megabytes, so it is read only where it is needed."""
    row = tx.rows("SELECT spec FROM specs WHERE seq = ?", task["seq"])[0]
    return TaskSpec.model_validate_json(row["spec"])


def keep_result(tx: Tx, task: Row, value: Any) -> None:
    """Write what an attempt returned, in place of what an earlier one did."""
    tx.run("DELETE FROM results WHERE seq = ?", task["seq"])
    if value is not None:
        tx.run("INSERT INTO results VALUES (?, ?)", task["seq"], canonical(value).decode())


def succeed(tx: Tx, task: Row, artifacts: list[tuple[str, str, int, str]], digest: str) -> None:
    """The task is done; `artifacts` are (name, sha256, size, type)."""
    who = end_attempt(tx, task, "succeeded", "succeeded", digest)
    tx.run("DELETE FROM artifacts WHERE task_id = ?", task["task_id"])
    for name, sha256, size, kind in artifacts:
        tx.run(
            "INSERT INTO artifacts (task_id, name, attempt, sha256, size, type)"
            " VALUES (?, ?, ?, ?, ?, ?)",
            task["task_id"], name, task["attempts"], sha256, size, kind,
        )  # fmt: skip
    move(
        tx, task, S.SUCCEEDED, "succeeded", who=who, error=None, progress=100.0, in_row=0,
        lease_id=None,
    )  # fmt: skip


def clear_fence(tx: Tx, lease_id: str) -> None:
    """The cut-off attempt is surely dead: a requeued task may start."""
    task = tx.row("SELECT * FROM tasks WHERE fence = ?", lease_id)
    tx.changes.unfenced.append(lease_id)
    if task is not None:
        tx.run("UPDATE tasks SET fence = NULL WHERE seq = ?", task["seq"])
        task["fence"] = None
        queue_if_due(tx, task)
