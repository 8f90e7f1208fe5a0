"""Taking tasks in: all of a call or none, each id once, no circles."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rae_control.core.lanes import lane_id
from rae_control.core.matching import canonical_requirements
from rae_control.ledger import tasks as ledger_tasks
from rae_control.ledger.store import Row, Tx
from rae_protocol.errors import RaeError
from rae_protocol.models import canonical
from rae_protocol.names import TaskState
from rae_protocol.tasks import BlobInput, TaskInput, TaskRef, TaskSpec


@dataclass(frozen=True, slots=True)
class Prepared:
    """A task ready for the ledger: everything that needs no database is done."""

    spec: TaskSpec
    task_id: str
    text: str
    digest: str
    key: str | None
    lane_id: str
    requirements: str
    needs: tuple[str, ...]
    lease_ttl_s: float


def prepare(spec: TaskSpec, task_id: str, submitter: str, default_ttl_s: float) -> Prepared:
    """Canonical text, lane and dependencies of a task."""
    body = spec.model_dump(mode="json", exclude_none=True, exclude={"task_id"})
    text = canonical(body)
    requirements = canonical_requirements(spec)
    from_tasks = [s.from_task for s in spec.inputs.values() if isinstance(s, TaskInput)]
    return Prepared(
        spec=spec,
        task_id=task_id,
        text=text.decode(),
        digest=hashlib.sha256(text).hexdigest(),
        key=_idempotency_key(spec, body),
        lane_id=lane_id(spec.priority, submitter, requirements),
        requirements=canonical(requirements).decode(),
        needs=tuple(dict.fromkeys([*spec.depends_on, *from_tasks])),
        lease_ttl_s=spec.lease_ttl_s if spec.lease_ttl_s is not None else default_ttl_s,
    )


def _idempotency_key(spec: TaskSpec, body: dict[str, Any]) -> str | None:
    """The client's key; else a named step's (D2): its name and the hash of its inputs."""
    if spec.idempotency_key is not None or spec.step_name is None:
        return spec.idempotency_key
    inputs = spec.inputs_hash
    if inputs is None:
        parts = {name: body.get(name) for name in ("kind", "params", "inputs")}
        inputs = hashlib.sha256(canonical(parts)).hexdigest()
    return f"step:{spec.step_name}:{inputs}"


def check_circles(batch: Sequence[Prepared]) -> None:
    """Raises RaeError `dependency_cycle`. Older tasks never depend on newer: only the batch."""
    needs = {task.task_id: list(task.needs) for task in batch}
    done: set[str] = set()
    for start in needs:
        path: list[str] = []
        on_path: set[str] = set()
        stack: list[tuple[str, bool]] = [(start, False)]
        while stack:
            name, leaving = stack.pop()
            if leaving:
                done.add(name)
                on_path.discard(path.pop())
                continue
            if name in on_path:
                circle = " -> ".join([*path[path.index(name) :], name])
                raise RaeError("dependency_cycle", f"the circle is {circle[:300]}")
            if name in done or name not in needs:
                continue
            path.append(name)
            on_path.add(name)
            stack.append((name, True))
            stack.extend((need, False) for need in needs[name])


def submit(tx: Tx, submitter: str, batch: Sequence[Prepared]) -> list[TaskRef]:
    """Write the tasks; the same id and body again answers with the task that is there.

    Raises RaeError `task_id_taken`, `task_conflict`, `unknown_dependency`, `unknown_input`: nothing
    of the batch is kept then.
    """
    refs: list[TaskRef] = []
    fresh: list[tuple[Prepared, Row]] = []
    for task in batch:
        known = _known(tx, submitter, task)
        if known is not None:
            refs.append(
                TaskRef(task_id=known["task_id"], state=TaskState(known["state"]), created=False)
            )
            continue
        fresh.append((task, _insert(tx, submitter, task)))
        refs.append(TaskRef(task_id=task.task_id, state=TaskState.WAITING))
    specs = {task.task_id: task.spec for task, _ in fresh}
    ended: list[tuple[Row, str]] = []
    for task, row in fresh:
        _check_inputs(tx, submitter, task, specs)
        broken = _depend(tx, submitter, task, row)
        if broken:
            ended.append((row, broken))
    for _, row in fresh:
        due = row["unmet"] == 0 and (row["not_before"] is None or row["not_before"] <= tx.now)
        row["state"] = "queued" if due else "waiting"
        tx.run(
            "UPDATE tasks SET state = ?, unmet = ? WHERE seq = ?",
            row["state"],
            row["unmet"],
            row["seq"],
        )
        ledger_tasks.inserted(tx, row)
    for row, broken in ended:
        current = ledger_tasks.get(tx, row["task_id"])
        if not TaskState(current["state"]).final:
            error = json.dumps({"code": "E_INPUT", "message": f"dependency failed: {broken}"})
            ledger_tasks.move(
                tx, current, TaskState.FAILED, "dependency_failed", detail=broken, error=error
            )
    states = {row["task_id"]: ledger_tasks.get(tx, row["task_id"])["state"] for _, row in fresh}
    return [
        ref.model_copy(update={"state": TaskState(states.get(ref.task_id, ref.state))})
        for ref in refs
    ]


def _known(tx: Tx, submitter: str, task: Prepared) -> Row | None:
    row = tx.row(
        "SELECT task_id, state, submitter, spec_sha256 FROM tasks WHERE task_id = ?", task.task_id
    )
    if row is not None:
        if row["submitter"] != submitter:
            raise RaeError("task_id_taken", f"the id {task.task_id} is taken")
        if row["spec_sha256"] != task.digest:
            raise RaeError("task_conflict", f"the id {task.task_id} exists with another body")
        return row
    if task.key is None:
        return None
    return tx.row(
        "SELECT task_id, state FROM tasks WHERE submitter = ? AND idempotency_key = ?"
        " AND state NOT IN ('failed', 'cancelled', 'expired') ORDER BY seq DESC LIMIT 1",
        submitter, task.key,
    )  # fmt: skip


def _insert(tx: Tx, submitter: str, task: Prepared) -> Row:
    spec = task.spec
    tx.run("INSERT OR IGNORE INTO lanes VALUES (?, ?)", task.lane_id, task.requirements)
    row: Row = {
        "task_id": task.task_id, "submitter": submitter, "state": "waiting", "kind": spec.kind,
        "priority": spec.priority, "lane_id": task.lane_id, "spec": task.text,
        "spec_sha256": task.digest, "idempotency_key": task.key, "lease_ttl_s": task.lease_ttl_s,
        "timeout_s": spec.timeout_s, "max_attempts": spec.max_attempts, "unmet": 0,
        "not_before": spec.not_before and spec.not_before.timestamp(),
        "expires_at": spec.expires_at and spec.expires_at.timestamp(),
        "created_at": tx.now, "updated_at": tx.now, "reason": "submitted",
    }  # fmt: skip
    names = ", ".join(row)
    marks = ", ".join("?" * len(row))
    tx.run(f"INSERT INTO tasks ({names}) VALUES ({marks})", *row.values())
    return {**row, "seq": tx.db.last_insert_rowid(), "lease_id": None, "fence": None}


def _depend(tx: Tx, submitter: str, task: Prepared, row: Row) -> str | None:
    """Record what the task needs; returns a dependency that has failed already."""
    broken = None
    for need in task.needs:
        other = tx.row("SELECT state, submitter FROM tasks WHERE task_id = ?", need)
        if other is None or other["submitter"] != submitter:
            raise RaeError("unknown_dependency", f"{task.task_id} depends on {need}")
        tx.run("INSERT INTO dependencies VALUES (?, ?)", task.task_id, need)
        if other["state"] == "succeeded":
            continue
        row["unmet"] += 1
        if TaskState(other["state"]).final:
            broken = f"{need} ended as {other['state']}"
    return broken


def _check_inputs(tx: Tx, submitter: str, task: Prepared, specs: dict[str, TaskSpec]) -> None:
    for name, source in task.spec.inputs.items():
        if isinstance(source, BlobInput):
            found = tx.row(
                "SELECT 1 FROM blobs WHERE sha256 = ? AND submitter = ?", source.sha256, submitter
            )
            tx.run("INSERT OR IGNORE INTO task_blobs VALUES (?, ?)", source.sha256, task.task_id)
            if found is None:
                raise RaeError(
                    "unknown_input", f"blob {source.sha256} of input '{name}' is not here"
                )
        elif isinstance(source, TaskInput):
            spec = specs.get(source.from_task) or _spec_of(tx, submitter, source.from_task)
            if source.artifact not in {artifact.name for artifact in spec.artifacts}:
                raise RaeError(
                    "unknown_input",
                    f"task {source.from_task} declares no artifact '{source.artifact}'",
                )


def _spec_of(tx: Tx, submitter: str, task_id: str) -> TaskSpec:
    row = tx.row("SELECT spec FROM tasks WHERE task_id = ? AND submitter = ?", task_id, submitter)
    if row is None:
        raise RaeError("unknown_dependency", f"there is no task {task_id} to take an input from")
    return TaskSpec.model_validate_json(row["spec"])
