"""Taking tasks in: all of a call or none, each id once, no circles."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from typing import Any

from rae_control.core.lanes import lane_id
from rae_control.core.matching import canonical_requirements
from rae_control.ledger import tasks as ledger_tasks
from rae_control.ledger.base import Row, Tx
from rae_control.ledger.schema import ALIVE, LABELS, OPEN_NEED
from rae_protocol.errors import RaeError
from rae_protocol.models import canonical
from rae_protocol.names import MAX_DECLARED, TaskState
from rae_protocol.tasks import BlobInput, TaskInput, TaskRef, TaskSpec


@dataclass(frozen=True, slots=True)
class Prepared:
    """A task ready for the ledger: everything that needs no database is done."""

    spec: TaskSpec
    task_id: str
    text: bytes
    digest: str
    key: str | None
    lane_id: str
    requirements: str
    needs: tuple[str, ...]
    blobs: frozenset[str]
    lease_ttl_s: float

    @property
    def from_tasks(self) -> Iterator[TaskInput]:
        """The inputs that come from other tasks."""
        return (one for one in self.spec.inputs.values() if isinstance(one, TaskInput))


def prepare(spec: TaskSpec, task_id: str, submitter: str, default_ttl_s: float) -> Prepared:
    """Canonical text, lane and dependencies of a task."""
    body = spec.model_dump(mode="json", exclude_none=True, exclude={"task_id"})
    text = canonical(body)
    requirements = canonical_requirements(spec)
    return Prepared(
        spec=spec,
        task_id=task_id,
        text=text,
        digest=hashlib.sha256(text).hexdigest(),
        key=_idempotency_key(spec, body),
        lane_id=lane_id(spec.priority, submitter, requirements),
        requirements=canonical(requirements).decode(),
        needs=_needs(spec),
        blobs=frozenset(s.sha256 for s in spec.inputs.values() if isinstance(s, BlobInput)),
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


def in_order(batch: Sequence[Prepared]) -> list[Prepared]:
    """Each task after those of the batch that it needs.

    Older tasks never depend on newer ones, so circles can only be here. Raises RaeError
    `dependency_cycle`.
    """
    by_id = {task.task_id: task for task in batch}
    needs = {name: [need for need in task.needs if need in by_id] for name, task in by_id.items()}
    try:
        return [by_id[name] for name in TopologicalSorter(needs).static_order()]
    except CycleError as error:
        circle = " -> ".join(reversed(error.args[1]))
        raise RaeError("dependency_cycle", f"the circle is {circle[:300]}") from error


def submit(
    tx: Tx, submitter: str, batch: Sequence[Prepared], limits: Callable[[Tx, str], None]
) -> list[TaskRef]:
    """Write the tasks; the same id and body again answers with the task that is there.

    `limits` looks at what was written, if anything was. Raises RaeError `task_id_taken`,
    `task_conflict`, `unknown_dependency`, `unknown_input`, or what `limits` raises: nothing of the
    batch is kept then.
    """
    refs: list[TaskRef] = []
    new: dict[str, Prepared] = {}
    found = _resolve(tx, submitter, batch)
    for sent in batch:
        task, known = found[sent.task_id]
        state, name = TaskState.WAITING, task.task_id
        if known is not None:
            state, name = TaskState(known["state"]), known["task_id"]
        created = known is None and name not in new  # else it was sent twice in this very call
        if created:
            new[name] = task
        refs.append(TaskRef(task_id=name, state=state, created=created))
    fresh = _insert(tx, submitter, list(new.values()))
    specs = {task.task_id: task.spec for task, _ in fresh}
    ended: list[tuple[Row, str]] = []
    _check_inputs(tx, submitter, fresh, specs)
    for task, row in fresh:
        broken = _depend(tx, submitter, task, row)
        if broken:
            ended.append((row, broken))
    _settle(tx, fresh)
    if fresh:
        limits(tx, submitter)
    states = {row["task_id"]: row["state"] for _, row in fresh}
    if ended:
        _end(tx, ended)
        states = {name: ledger_tasks.get(tx, name)["state"] for name in states}
    return [
        ref.model_copy(update={"state": TaskState(states.get(ref.task_id, ref.state))})
        for ref in refs
    ]


def _end(tx: Tx, ended: Sequence[tuple[Row, str]]) -> None:
    """Tasks that need one which has failed already."""
    for row, broken in ended:
        current = ledger_tasks.get(tx, row["task_id"])
        if not TaskState(current["state"]).final:
            error = json.dumps({"code": "E_INPUT", "message": f"dependency failed: {broken}"})
            ledger_tasks.move(
                tx, current, TaskState.FAILED, "dependency_failed", detail=broken, error=error
            )


def _resolve(
    tx: Tx, submitter: str, batch: Sequence[Prepared]
) -> dict[str, tuple[Prepared, Row | None]]:
    """Every task of the batch, by its id, with the one that it stands for if there is one already.

    Who needs a task that stands for another one needs that other one.
    """
    sent: dict[str, Prepared] = {}
    there = {row["task_id"]: row for row in tx.rows(_THERE, json.dumps([t.task_id for t in batch]))}
    for task in batch:
        if sent.setdefault(task.task_id, task).digest != task.digest:
            raise RaeError("task_conflict", f"the id {task.task_id} stands there with two bodies")
    found: dict[str, tuple[Prepared, Row | None]] = {}
    names: dict[str, str] = {}
    by_key: dict[str, Row] = {}
    for task in in_order(batch):
        if not names.keys().isdisjoint(task.needs):
            task = _renamed(task, names)  # noqa: PLW2901
        known = _known(tx, submitter, task, there.get(task.task_id))
        if known is None and task.key is not None:
            known = by_key.get(task.key)
            by_key.setdefault(task.key, {"task_id": task.task_id, "state": "waiting"})
        if known is not None and known["task_id"] != task.task_id:
            names[task.task_id] = known["task_id"]
        found[task.task_id] = (task, known)
    return found


def _renamed(task: Prepared, names: Mapping[str, str]) -> Prepared:
    """With other names for the tasks that it needs. The digest stays that of what was sent."""
    inputs = {
        name: source.model_copy(update={"from_task": names.get(source.from_task, source.from_task)})
        if isinstance(source, TaskInput)
        else source
        for name, source in task.spec.inputs.items()
    }
    depends_on = [names.get(need, need) for need in task.spec.depends_on]
    spec = task.spec.model_copy(update={"inputs": inputs, "depends_on": depends_on})
    body = spec.model_dump(mode="json", exclude_none=True, exclude={"task_id"})
    return replace(
        task,
        spec=spec,
        text=canonical(body),
        key=_idempotency_key(spec, body),
        needs=_needs(spec),
    )


def _needs(spec: TaskSpec) -> tuple[str, ...]:
    from_tasks = [s.from_task for s in spec.inputs.values() if isinstance(s, TaskInput)]
    return tuple(dict.fromkeys([*spec.depends_on, *from_tasks]))


# One statement for all: each that the writer's thread makes gives others the interpreter meanwhile.
_THERE = """SELECT task_id, state, submitter, spec_sha256 FROM json_each(?) i
    JOIN tasks ON tasks.task_id = i.value"""


def _known(tx: Tx, submitter: str, task: Prepared, row: Row | None) -> Row | None:
    if row is not None:
        if row["submitter"] != submitter:
            raise RaeError("task_id_taken", f"the id {task.task_id} is taken")
        if row["spec_sha256"] != task.digest:
            raise RaeError("task_conflict", f"the id {task.task_id} exists with another body")
        return row
    if task.key is None:
        return None
    return of_key(tx, submitter, task.key)


def of_key(tx: Tx, submitter: str, key: str) -> Row | None:
    """The submitter's task with this idempotency key that waits, is queued, runs or succeeded."""
    sql = (
        f"SELECT task_id, state FROM tasks WHERE submitter = ? AND idempotency_key = ? AND {ALIVE}"
    )
    return tx.row(f"{sql} ORDER BY seq DESC LIMIT 1", submitter, key)


def _insert(tx: Tx, submitter: str, tasks: Sequence[Prepared]) -> list[tuple[Prepared, Row]]:
    for lane in {(task.lane_id, task.requirements) for task in tasks}:
        tx.run("INSERT OR IGNORE INTO lanes VALUES (?, ?)", *lane)
    rows: list[Row] = []
    for task in tasks:
        spec = task.spec
        rows.append({
            "task_id": task.task_id, "submitter": submitter, "state": "waiting", "kind": spec.kind,
            "priority": spec.priority, "lane_id": task.lane_id,
            "spec_bytes": len(task.text), "spec_sha256": task.digest, "idempotency_key": task.key,
            "lease_ttl_s": task.lease_ttl_s,
            "timeout_s": spec.timeout_s, "max_attempts": spec.max_attempts, "unmet": 0,
            "not_before": spec.not_before and spec.not_before.timestamp(),
            "expires_at": spec.expires_at and spec.expires_at.timestamp(),
            "created_at": tx.now, "updated_at": tx.now, "reason": "submitted",
        })  # fmt: skip
    seqs = tx.insert("tasks", rows)
    tx.insert("specs", [
        {"seq": seq, "labels": canonical(task.spec.labels).decode(), "spec": task.text.decode()}
        for seq, task in zip(seqs, tasks, strict=True)
    ])  # fmt: skip
    if any(task.spec.labels for task in tasks):
        # One call's tasks stand one after the other.
        tx.run(f"INSERT INTO labels {LABELS} WHERE seq BETWEEN ? AND ?", min(seqs), max(seqs))
    more = {"lease_id": None, "fence": None, "avoid": None}
    return [
        (task, {**row, "seq": seq, **more})
        for task, row, seq in zip(tasks, rows, seqs, strict=True)
    ]


def _settle(tx: Tx, fresh: Sequence[tuple[Prepared, Row]]) -> None:
    """What nothing keeps waiting is queued, and all begin their history."""
    due = []
    for _, row in fresh:
        if row["unmet"]:
            tx.run("UPDATE tasks SET unmet = ? WHERE seq = ?", row["unmet"], row["seq"])
        elif row["not_before"] is None or row["not_before"] <= tx.earliest:
            row["state"] = "queued"
            due.append(row["seq"])
    tx.run(
        "UPDATE tasks SET state = 'queued' WHERE seq IN (SELECT value FROM json_each(?))",
        json.dumps(due),
    )
    ledger_tasks.inserted(tx, [(row, task.requirements) for task, row in fresh])


_NEED = f"""SELECT n.state, n.submitter, {OPEN_NEED} AS open FROM tasks n,
    (SELECT ? AS task_id, ? AS needs) d WHERE n.task_id = d.needs"""


def _depend(tx: Tx, submitter: str, task: Prepared, row: Row) -> str | None:
    """Record what the task needs; returns a dependency that has failed already."""
    broken = None
    for need in task.needs:
        other = tx.row(_NEED, task.task_id, need)
        if other is None or other["submitter"] != submitter:
            raise RaeError("unknown_dependency", f"{task.task_id} depends on {need}")
        tx.run("INSERT INTO dependencies VALUES (?, ?)", task.task_id, need)
        if not other["open"]:
            continue
        row["unmet"] += 1
        state = TaskState(other["state"])
        if state.final and state is not TaskState.SUCCEEDED:
            broken = f"{need} ended as {other['state']}"
    return broken


def _check_inputs(
    tx: Tx, submitter: str, fresh: Sequence[tuple[Prepared, Row]], specs: Mapping[str, TaskSpec]
) -> None:
    """All of a call's at once: there may be tens of thousands, and the writer is everybody's."""
    declared: dict[str, Collection[str]] = {
        name: {artifact.name for artifact in spec.artifacts} for name, spec in specs.items()
    }
    looked_at = 0
    for task, _ in fresh:
        for source in task.from_tasks:
            needs = source.from_task
            if needs not in declared:
                declared[needs], size = _artifacts_of(tx, submitter, needs)
                looked_at += size
            if looked_at > MAX_DECLARED:
                cause = f"artifacts of more than {MAX_DECLARED} characters are declared"
                sources = "by the tasks that inputs come from; submit fewer at once"
                raise RaeError("invalid_body", f"{cause} {sources}")
            if source.artifact not in declared[needs]:
                cause = f"task {needs} declares no artifact '{source.artifact}'"
                raise RaeError("unknown_input", cause)
    wanted = sorted({blob for task, _ in fresh for blob in task.blobs})
    missing = tx.row(
        "SELECT value FROM json_each(?) WHERE value NOT IN"
        " (SELECT sha256 FROM blobs WHERE submitter = ? AND sha256 = value)",
        json.dumps(wanted), submitter,
    )  # fmt: skip
    if missing:
        raise RaeError("unknown_input", f"blob {missing['value']} of an input is not here")
    read = json.dumps([(blob, task.task_id) for task, _ in fresh for blob in task.blobs])
    tx.run(
        "INSERT OR IGNORE INTO task_blobs SELECT value ->> 0, value ->> 1 FROM json_each(?)", read
    )


# A spec's canonical text begins with its artifacts, mostly few. What may follow has megabytes.
_FIRST, _FIRST_BYTES = '{"artifacts":', (4096, 512 * 1024)


def _artifacts_of(tx: Tx, submitter: str, task_id: str) -> tuple[set[str], int]:
    """The names of what a task declares; of what it left, where its spec was dropped.

    And how many characters that is.
    """
    sql = "SELECT seq, spec_bytes FROM tasks WHERE task_id = ? AND submitter = ?"
    row = tx.row(sql, task_id, submitter)
    if row is None:
        raise RaeError("unknown_dependency", f"there is no task {task_id} to take an input from")
    if not row["spec_bytes"]:
        left = tx.rows("SELECT name FROM artifacts WHERE task_id = ?", task_id)
        names = {artifact["name"] for artifact in left}
        return names, sum(map(len, names))
    with tx.db.blob_open("main", "specs", "spec", row["seq"], False) as spec:
        few, many = _FIRST_BYTES
        begins = spec.read(few)
        try:
            return _declared(begins)
        except ValueError:  # cut off
            return _declared(begins + spec.read(many))


def _declared(begins: bytes) -> tuple[set[str], int]:
    """The names of the artifacts with which a spec's text begins, and the size of their list."""
    text = begins.decode(errors="replace").removeprefix(_FIRST)
    found, size = json.JSONDecoder().raw_decode(text)
    return {artifact["name"] for artifact in found}, size
