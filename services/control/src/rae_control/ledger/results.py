"""How an attempt ends by the node's own word: a result, or handed back."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from rae_control.core.retries import NO_CHARGE, Limits, after_failure
from rae_control.ledger import nodes as ledger_nodes
from rae_control.ledger import tasks as ledger_tasks
from rae_control.ledger.store import Row, Tx
from rae_protocol.errors import RaeError
from rae_protocol.models import canonical
from rae_protocol.names import TaskState
from rae_protocol.nodes import Result, YieldRequest
from rae_protocol.tasks import ArtifactSpec, TaskSpec


@dataclass(frozen=True, slots=True)
class Stored:
    """An artifact whose bytes are in the blob store."""

    name: str
    sha256: str
    size: int
    type: str


def deliver(
    tx: Tx, node_id: str, result: Result, digest: str, artifacts: Sequence[Stored], limits: Limits
) -> str | None:
    """Take a result; returns the task's state, None when the lease is over.

    The same result again gives the same answer. Raises RaeError `artifact_mismatch`.
    """
    repeated = _repeated(tx, node_id, result, digest)
    if repeated is not None:
        return repeated
    task = ledger_tasks.open_attempt(
        tx, "result", node_id, result.task_id, result.attempt, result.lease_id
    )
    if task is None:
        return None
    ledger_tasks.ack(tx, task)
    if result.status == "succeeded":
        kept = _declared(TaskSpec.model_validate_json(task["spec"]).artifacts, artifacts)
        value = None if result.result is None else canonical(result.result).decode()
        ledger_tasks.succeed(tx, task, value, kept, digest)
        ledger_nodes.infrastructure(tx, node_id, None, 1)
    else:
        _fail(tx, task, result, digest, limits)
    return str(task["state"])


def _fail(tx: Tx, task: Row, result: Result, digest: str, limits: Limits) -> None:
    error = {"code": "E_EXIT", "message": ""}
    if result.error is not None:
        error = {"code": result.error.code, "message": result.error.message}
    if error["code"] in NO_CHARGE:
        ledger_tasks.interrupt(
            tx, task["lease_id"], error["code"], limits, fenced=False, detail=error["message"],
            digest=digest,
        )  # fmt: skip
        return
    failures = task["failures"] + 1
    verdict = after_failure(error["code"], failures, task["max_attempts"], limits)
    value = None if result.result is None else canonical(result.result).decode()
    ledger_tasks.again(
        tx, task, verdict, "failed", error["code"], detail=error["message"][:500], digest=digest,
        failures=failures, in_row=0, error=json.dumps(error), result=value,
    )  # fmt: skip


def hand_back(
    tx: Tx, node_id: str, body: YieldRequest, limits: Limits, cordon_after: int
) -> tuple[str | None, bool]:
    """Take work back that was stopped; returns (state or None when stale, node cordoned now)."""
    past = tx.row(
        "SELECT a.state, t.state AS task_state, t.fence FROM attempts a"
        " JOIN tasks t USING (task_id)"
        " WHERE a.lease_id = ? AND a.node_id = ? AND a.task_id = ? AND a.ended_at IS NOT NULL"
        " AND a.machine IS ?",
        body.lease_id, node_id, body.task_id, ledger_nodes.holder_of(tx, node_id),
    )  # fmt: skip
    if past is not None and (past["state"] == "interrupted" or past["fence"] == body.lease_id):
        # A cancelled attempt is confirmed dead, or the answer to an earlier yield was lost.
        ledger_tasks.clear_fence(tx, body.lease_id)
        return str(past["task_state"]), False
    task = ledger_tasks.open_attempt(
        tx, "yield", node_id, body.task_id, body.attempt, body.lease_id
    )
    if task is None:
        return None, False
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
    return str(state), cordoned is not None


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


def _declared(
    specs: Sequence[ArtifactSpec], artifacts: Sequence[Stored]
) -> list[tuple[str, str, int, str]]:
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
