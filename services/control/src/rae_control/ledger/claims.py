"""Claims: the oldest task of the first lane that has one, straight from the ledger's own index."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from rae_control.core.matching import Another
from rae_control.ledger import results
from rae_control.ledger import tasks as ledger_tasks
from rae_control.ledger.base import Db, Row, Tx, fetch
from rae_protocol.nodes import LeasedInput
from rae_protocol.tasks import BlobInput, InlineInput, TaskInput, TaskSpec, UrlInput

# How long a task that failed on a node is left to others, and how many such are looked past.
PREFER_S = 600.0
_LOOK_AT = 200


@dataclass(frozen=True, slots=True)
class LaneOffer:
    """A lane that a node can serve, and what it would give: a slot, VRAM in MiB, its GPUs."""

    lane_id: str
    slot: str
    vram_mb: int
    uuids: tuple[str, ...]


class Unfinished(Enum):
    """A claim that shall go on: others had to write first."""

    UNFINISHED = "unfinished"


UNFINISHED = Unfinished.UNFINISHED


@dataclass(frozen=True, slots=True)
class Claimed:
    """A leased task, what was submitted, and where the node gets its inputs."""

    task: Row
    spec: TaskSpec
    inputs: dict[str, LeasedInput]


def claim(
    tx: Tx, *, node_id: str, session: str | None, offers: Sequence[LaneOffer], lease_id: str,
    acked: bool, another: Another,
) -> Claimed | Unfinished | None:  # fmt: skip
    """Lease the oldest task that this node may have, of the first offered lane with one.

    None when they have nothing any more, or when the node may have no work: it was drained,
    cordoned, revoked or replaced by another session while this claim waited for its turn.
    UNFINISHED when the time of a short transaction went by with tasks that had to end.
    """
    if not tx.row(
        "SELECT 1 FROM nodes WHERE node_id = ? AND token_sha256 IS ? AND online AND NOT revoked"
        " AND draining IS NULL AND cordoned IS NULL",
        node_id, session,
    ):  # fmt: skip
        return None
    for offer in offers:
        while (task := _oldest(tx, offer.lane_id, node_id, another)) is not None:
            spec = ledger_tasks.spec_of(tx, task)
            inputs = _manifest(tx, task, spec)
            if isinstance(inputs, str):
                results.fail_queued(tx, task, "E_INPUT", inputs)
                if tx.in_time():
                    continue
                return UNFINISHED
            who = ledger_tasks.Who(node_id, offer.slot)
            gpus = {"uuids": offer.uuids, "vram_mb": offer.vram_mb or None}
            ledger_tasks.claim(tx, task, lease_id, who, acked=acked, gpus=gpus)
            return Claimed(task, spec, inputs)
    return None


def _oldest(tx: Tx, lane_id: str, node_id: str, another: Another) -> Row | None:
    """The oldest queued task for this node; one that came too late is left to expire.

    What failed there only when no other node takes it, or none came for it in time.
    """
    head = _queued(tx, "*", lane_id, 1)
    if not head or head[0]["avoid"] is None:
        return head[0] if head else None
    needs = tx.row("SELECT requirements FROM lanes WHERE lane_id = ?", lane_id)
    for task in _queued(tx, "seq, avoid, updated_at", lane_id, _LOOK_AT):
        failed = json.loads(task["avoid"] or "[]")
        left = node_id in failed and tx.now - task["updated_at"] < PREFER_S
        if not (left and needs and another(needs["requirements"], failed, now=True)):
            return tx.row("SELECT * FROM tasks WHERE seq = ?", task["seq"])
    return None


def _queued(tx: Tx, columns: str, lane_id: str, limit: int) -> list[Row]:
    """Some of the lane's oldest tasks that are in time."""
    # The index by its name: left to itself, SQLite looks at what is queued in other lanes, too.
    return tx.rows(
        f"SELECT {columns} FROM (SELECT * FROM tasks INDEXED BY tasks_queue WHERE lane_id = ?"
        " AND state = 'queued' ORDER BY seq LIMIT ?)"
        " WHERE expires_at IS NULL OR expires_at > ? LIMIT ?",
        lane_id, _LOOK_AT, tx.now, limit,
    )  # fmt: skip


def _manifest(tx: Tx, task: Row, spec: TaskSpec) -> dict[str, LeasedInput] | str:
    """Where the node gets each input; a sentence when one cannot be had any more."""
    out: dict[str, LeasedInput] = {}
    for name, source in spec.inputs.items():
        if isinstance(source, InlineInput):
            out[name] = LeasedInput(inline=source.inline, encoding=source.encoding)
        elif isinstance(source, UrlInput):
            out[name] = LeasedInput(url=source.url, sha256=source.sha256)
        else:
            found = resolve_input(tx.db, task["submitter"], source)
            if found is None:
                return f"input '{name}' is not there: {json.dumps(source.model_dump())}"
            out[name] = LeasedInput(sha256=found["sha256"], size=found["size"])
    return out


def resolve_input(db: Db, submitter: str, source: BlobInput | TaskInput) -> Row | None:
    """The blob (sha256, size) behind an input, or None."""
    if isinstance(source, BlobInput):
        sql = "SELECT sha256, size FROM blobs WHERE sha256 = ? AND submitter = ?"
        found = fetch(db, sql, (source.sha256, submitter))
    else:
        found = fetch(
            db,
            "SELECT a.sha256, a.size FROM artifacts a JOIN tasks t USING (task_id)"
            " WHERE a.task_id = ? AND a.name = ? AND t.submitter = ?",
            (source.from_task, source.artifact, submitter),
        )
    return found[0] if found else None
