"""How an attempt ends by the node's own word: a result, or handed back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from rae_control.core.matching import Another
from rae_control.core.retries import (
    NO_CHARGE,
    Limits,
    Verdict,
    after_failure,
    speaks_of_node,
)
from rae_control.ledger import nodes as ledger_nodes
from rae_control.ledger import tasks as ledger_tasks
from rae_control.ledger.base import Db, Row, Tx, fetch
from rae_protocol.errors import RaeError
from rae_protocol.models import canonical
from rae_protocol.names import TaskState
from rae_protocol.nodes import Result, YieldRequest
from rae_protocol.tasks import ArtifactSpec, TaskSpec

_DENIED_WAITS_S = 60.0  # for a node that may come back


@dataclass(frozen=True, slots=True)
class Stored:
    """An artifact whose bytes are in the blob store."""

    name: str
    sha256: str
    size: int
    type: str


def expected(db: Db, node_id: str, result: Result) -> tuple[str, list[ArtifactSpec]] | None:
    """The lease that a success is for, and the artifacts that its task declares.

    None where nothing of the result is to be kept: it is no success, or this node has no such
    lease.
    """
    if result.status != "succeeded":
        return None
    found = fetch(
        db,
        "SELECT lease_id, spec FROM tasks JOIN specs USING (seq) WHERE task_id = ? AND node_id = ?"
        " AND lease_id IS NOT NULL AND (? IS NULL OR lease_id = ?) AND (? IS NULL OR attempts = ?)",
        (result.task_id, node_id, result.lease_id, result.lease_id, result.attempt,
         result.attempt),
    )  # fmt: skip
    if not found:
        return None
    return found[0]["lease_id"], TaskSpec.model_validate_json(found[0]["spec"]).artifacts


def deliver(
    tx: Tx, node_id: str, result: Result, digest: str, artifacts: Sequence[Stored], limits: Limits,
    another: Another, *, stored_for: str | None,
) -> str | None:  # fmt: skip
    """Take a result; returns the task's state, None when the lease is over.

    The same result again gives the same answer. A success counts only for the lease for which the
    bytes of its artifacts were stored. Raises RaeError `artifact_mismatch`.
    """
    repeated = _repeated(tx, node_id, result, digest)
    if repeated is not None:
        return repeated
    task = ledger_tasks.open_attempt(
        tx, "result", node_id, result.task_id, result.attempt, result.lease_id
    )
    if task is not None and artifacts and result.status == "succeeded":
        # Another lease began meanwhile, for a client that names none.
        task = task if task["lease_id"] == stored_for else None
    if task is None:
        _confirm_over(tx, node_id, result)
        return None
    ledger_tasks.ack(tx, task)
    if result.status == "succeeded":
        kept = declared(ledger_tasks.spec_of(tx, task).artifacts, artifacts)
        ledger_tasks.keep_result(tx, task, result.result)
        ledger_tasks.succeed(tx, task, kept, digest)
        ledger_nodes.infrastructure(tx, node_id, None, 1)
    else:
        _fail(tx, task, result, digest, limits, another)
    return str(ledger_tasks.get(tx, task["task_id"])["state"])


def _confirm_over(tx: Tx, node_id: str, result: Result) -> None:
    """A result that comes too late still says that nothing of its attempt runs any more.

    A client that names no lease means its one attempt of the task; had it several, an older one may
    have sent this.
    """
    row = tx.row(
        "SELECT a.lease_id FROM tasks t JOIN attempts a ON a.lease_id = t.fence"
        " WHERE t.task_id = ? AND a.node_id = ? AND a.machine = ? AND (a.lease_id = ?"
        " OR ? IS NULL AND NOT EXISTS (SELECT 1 FROM attempts b WHERE b.task_id = a.task_id"
        " AND b.node_id = a.node_id AND b.lease_id != a.lease_id))",
        result.task_id, node_id, ledger_nodes.holder_of(tx, node_id), result.lease_id,
        result.lease_id,
    )  # fmt: skip
    if row is not None:
        ledger_tasks.clear_fence(tx, row["lease_id"])


def _fail(tx: Tx, task: Row, result: Result, digest: str, limits: Limits, another: Another) -> None:
    error = {"code": "E_EXIT", "message": ""}
    if result.error is not None:
        error = {"code": result.error.code, "message": result.error.message}
    if error["code"] in NO_CHARGE:
        ledger_tasks.interrupt(
            tx, task["lease_id"], error["code"], limits, fenced=False, detail=error["message"],
            digest=digest,
        )  # fmt: skip
        return
    if error["code"] == "E_DENY" and (lane := _lane_elsewhere(tx, task, another)) is not None:
        elsewhere = Verdict(final=False, pause_s=0.0, reason="E_DENY")
        ledger_tasks.again(
            tx, task, elsewhere, "uncharged", "E_DENY", detail=error["message"][:500],
            digest=digest, lane_id=lane, error=json.dumps(error),
        )  # fmt: skip
        return
    avoid = set(json.loads(task["avoid"] or "[]"))
    if speaks_of_node(error["code"]):
        avoid.add(task["node_id"])
    failures = task["failures"] + 1
    verdict = after_failure(error["code"], failures, task["max_attempts"], limits)
    ledger_tasks.keep_result(tx, task, result.result)
    ledger_tasks.again(
        tx, task, verdict, "failed", error["code"], detail=error["message"][:500], digest=digest,
        failures=failures, in_row=0, error=json.dumps(error),
        avoid=json.dumps(sorted(avoid)) if avoid else None,
    )  # fmt: skip


def _lane_elsewhere(tx: Tx, task: Row, another: Another) -> str | None:
    """The lane for what this node denied: as before, but not here. Each node is asked once.

    None when no other node that is online could take it.
    """
    found = tx.row("SELECT requirements FROM lanes WHERE lane_id = ?", task["lane_id"])
    needs = json.loads(found["requirements"] if found else "{}")
    needs["not_nodes"] = sorted({*needs.get("not_nodes", ()), task["node_id"]})
    text = canonical(needs).decode()
    if not another(text, (), now=False):
        return None
    return ledger_tasks.keep_lane(tx, task, needs)


def fail_denied(tx: Tx, lane_id: str, limit: int) -> int:
    """End tasks that every node denied, or those that did not are gone; returns how many."""
    count = 0
    for found in tx.rows(
        "SELECT task_id FROM (SELECT task_id, updated_at FROM tasks INDEXED BY tasks_queue"
        " WHERE lane_id = ? AND state = 'queued' ORDER BY seq LIMIT ?) WHERE updated_at < ?",
        lane_id, limit, tx.now - _DENIED_WAITS_S,
    ):  # fmt: skip
        task = ledger_tasks.get(tx, found["task_id"])
        ledger_tasks.move(tx, task, TaskState.FAILED, "E_DENY", failures=task["failures"] + 1)
        count += 1
    return count


def hand_back(
    tx: Tx, node_id: str, body: YieldRequest, limits: Limits, cordon_after: int
) -> tuple[str | None, str | None]:
    """Take work back that was stopped: (state or None when stale, why the node is cordoned now)."""
    past = tx.row(
        "SELECT a.state, t.state AS task_state, t.fence FROM attempts a"
        " JOIN tasks t USING (task_id)"
        " WHERE a.lease_id = ? AND a.node_id = ? AND a.task_id = ? AND a.ended_at IS NOT NULL"
        " AND a.machine IS ?",
        body.lease_id, node_id, body.task_id, ledger_nodes.holder_of(tx, node_id),
    )  # fmt: skip
    if past is not None and (
        past["state"] in {"interrupted", "uncharged"} or past["fence"] == body.lease_id
    ):
        # A cancelled attempt is confirmed dead, or the answer to an earlier yield was lost.
        ledger_tasks.clear_fence(tx, body.lease_id)
        return str(past["task_state"]), None
    task = ledger_tasks.open_attempt(
        tx, "yield", node_id, body.task_id, body.attempt, body.lease_id
    )
    if task is None:
        return None, None
    detail = {"detail": body.detail, "stopped_ms": body.stopped_ms}
    infrastructure = body.reason == "infrastructure"
    reason = "E_NOGPU" if body.reason == "no_gpu" else f"yield_{body.reason}"
    ledger_tasks.interrupt(tx, body.lease_id, reason, limits, fenced=False, detail=detail)
    cordoned = None
    if infrastructure:
        cordoned = ledger_nodes.infrastructure(
            tx, node_id, body.detail or "no detail given", cordon_after
        )
    state = ledger_tasks.get(tx, body.task_id)["state"]
    return str(state), cordoned


def fail_queued(tx: Tx, task: Row, code: str, message: str) -> None:
    """End a queued task that cannot run anywhere."""
    error = json.dumps({"code": code, "message": message})
    ledger_tasks.move(tx, task, TaskState.FAILED, code, detail=message, error=error)


def _repeated(tx: Tx, node_id: str, result: Result, digest: str) -> str | None:
    """The task's state when exactly this result was taken before.

    A client that names no lease means its open one, if it has one: two attempts on the same node
    may well fail with the same words.
    """
    if result.lease_id is None and tx.row(
        "SELECT 1 FROM tasks WHERE task_id = ? AND node_id = ? AND lease_id IS NOT NULL",
        result.task_id, node_id,
    ):  # fmt: skip
        return None
    row = tx.row(
        "SELECT t.state FROM attempts a JOIN tasks t USING (task_id) WHERE a.task_id = ?"
        " AND a.node_id = ? AND a.result_sha256 = ? AND (? IS NULL OR a.lease_id = ?)",
        result.task_id, node_id, digest, result.lease_id, result.lease_id,
    )  # fmt: skip
    return None if row is None else str(row["state"])


def declared(
    specs: Sequence[ArtifactSpec], artifacts: Sequence[Stored]
) -> list[tuple[str, str, int, str]]:
    """The artifacts as (name, sha256, size, type). Raises RaeError `artifact_mismatch`."""
    known = {spec.name: spec for spec in specs}
    out = []
    for item in artifacts:
        spec = known.get(item.name)
        if spec is None:
            raise RaeError("artifact_mismatch", f"the task declares no artifact '{item.name}'")
        if item.size > spec.max_mb * 1024 * 1024:
            raise RaeError("artifact_mismatch", f"'{item.name}' is larger than {spec.max_mb:g} MiB")
        out.append((item.name, item.sha256, item.size, spec.type))
    return out
