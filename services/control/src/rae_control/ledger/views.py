"""Reading the ledger: details, lists, events, and the snapshots that memory starts from."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from datetime import datetime, timezone
from typing import Any

from rae_control.ledger.base import Db, Row, fetch, streamed
from rae_control.ledger.retention import removed_events_key
from rae_protocol.errors import RaeError
from rae_protocol.names import TaskState
from rae_protocol.tasks import ArtifactView, AttemptView, EventView, TaskError, TaskView

LIST_LIMIT = 500
# A page ends early rather than hold more than this of what callers wrote.
PAGE_BYTES = 2 * 1024**2
_TASK = "SELECT t.*, s.labels FROM tasks t JOIN specs s USING (seq)"
_OF_LABEL = _TASK.replace("FROM", "FROM labels l CROSS JOIN") + " WHERE t.seq = l.seq AND "
# A list looks at so many tasks in one read.
LOOK_AT = 5000
_AFTER_ALL = 2**63 - 1


def moment(unix: float | None) -> datetime | None:
    """Unix seconds as an aware UTC datetime, None stays None."""
    return None if unix is None else datetime.fromtimestamp(unix, tz=timezone.utc)


def task_row(db: Db, task_id: str, submitter: str | None) -> Row:
    """A task that this submitter may see (None: everybody's). Raises RaeError `unknown_task`."""
    rows = fetch(db, f"{_TASK} WHERE task_id = ?", (task_id,))
    if not rows or submitter not in {None, rows[0]["submitter"]}:
        raise RaeError("unknown_task", f"there is no task {task_id}")
    return rows[0]


def view(row: Row) -> TaskView:
    """A task without its heavy fields."""
    return TaskView(
        task_id=row["task_id"],
        state=TaskState(row["state"]),
        kind=row["kind"],
        submitter=row["submitter"],
        priority=row["priority"],
        attempts=row["attempts"],
        failures=row["failures"],
        interruptions=row["interruptions"],
        created_at=_always(row["created_at"]),
        updated_at=_always(row["updated_at"]),
        finished_at=moment(row["finished_at"]),
        not_before=moment(row["not_before"]) if row["state"] == "waiting" else None,
        node_id=row["node_id"],
        slot=row["slot"],
        reason=row["reason"],
        progress=row["progress"],
        note=row["note"],
        labels=json.loads(row["labels"] or "{}"),
        error=_error(row),
        dropped=not row["spec_bytes"],
    )


def detail(db: Db, row: Row) -> TaskView:
    """Everything about a task but why it does not run, its spec and its result."""
    artifacts = [
        ArtifactView(name=a["name"], size=a["size"], sha256=a["sha256"], type=a["type"])
        for a in fetch(
            db, "SELECT * FROM artifacts WHERE task_id = ? ORDER BY name", (row["task_id"],)
        )
    ]
    history = [
        AttemptView(
            attempt=a["attempt"],
            node_id=a["node_id"],
            slot=a["slot"],
            state=a["state"],
            reason=a["reason"],
            claimed_at=_always(a["claimed_at"]),
            acked_at=moment(a["acked_at"]),
            ended_at=moment(a["ended_at"]),
        )
        for a in fetch(
            db,
            "SELECT * FROM attempts WHERE task_id = ? ORDER BY attempt DESC LIMIT 50",
            (row["task_id"],),
        )
    ]
    extra: dict[str, Any] = {
        "artifacts": artifacts,
        "history": history[::-1],
    }
    return view(row).model_copy(update=extra)


def spec_text(db: Db, row: Row) -> bytes:
    """What was submitted, as JSON."""
    return _text(db, "SELECT CAST(spec AS BLOB) FROM specs WHERE seq = ?", row) or b"null"


def result_text(db: Db, row: Row) -> bytes | None:
    """What the task returned, as JSON."""
    return _text(db, "SELECT CAST(result AS BLOB) FROM results WHERE seq = ?", row)


def _text(db: Db, sql: str, row: Row) -> bytes | None:
    text: bytes | None = db.execute(sql, (row["seq"],)).get
    return text


def _page(rows: Iterator[Row], limit: int, *heavy: str) -> tuple[list[Row], bool]:
    """The first rows, and whether there are more; at least one, however heavy it is."""
    page: list[Row] = []
    size = 0
    for row in rows:
        if len(page) == limit or size > PAGE_BYTES:
            return page, True
        page.append(row)
        size += sum(len(row[name] or "") for name in heavy)
    return page, False


def task_list(
    db: Db, filters: Mapping[str, Any], limit: int, before: int | None
) -> tuple[list[TaskView], int | None]:
    """Some tasks, newest first, and the cursor of what follows; perhaps none where more follow.

    Looks at a bounded number of tasks, along the filter that fewest of them pass.
    """
    wanted = {name: value for name, value in filters.items() if value is not None}
    top = _AFTER_ALL if before is None else before
    # Each filter's next tasks reach back to a place; those of the rarest reach furthest.
    ends = {name: _end(db, name, value, top) for name, value in wanted.items()}
    by = min(ends, key=ends.__getitem__, default=None)
    end, seq = ends[by] if by else 0, "l.seq" if by == "label" else "t.seq"
    # The plus keeps SQLite from going along another filter.
    tests = {name: f"{'' if name == by else '+'}{name} = ?" for name in wanted}
    if "label" in wanted and by != "label":
        tests["label"] = "EXISTS (SELECT 1 FROM labels l WHERE label = ? AND l.seq = t.seq)"
    where = " AND ".join([f"{seq} < ?", f"{seq} >= ?", *tests.values()])
    sql = f"{_OF_LABEL if by == 'label' else f'{_TASK} WHERE '}{where} ORDER BY {seq} DESC"
    found = streamed(db, sql, [top, end, *wanted.values()])
    rows, more = _page(found, limit, "labels", "error", "note")
    return [view(row) for row in rows], rows[-1]["seq"] if more else end or None


def _end(db: Db, name: str, value: str, top: int) -> int:
    """The last of a filter's next tasks; 0 where they are all that are left."""
    table = "labels" if name == "label" else "tasks"
    sql = f"SELECT seq FROM {table} WHERE {name} = ? AND seq < ? ORDER BY seq DESC LIMIT 1 OFFSET ?"
    return int(db.execute(sql, (value, top, LOOK_AT - 1)).get or 0)


def events(
    db: Db,
    after: int,
    limit: int,
    *,
    submitter: str | None,
    task_id: str | None = None,
) -> list[EventView]:
    """Events with a larger seq than `after`, oldest first."""
    where, values = ["seq > ?"], list[Any]([after])
    if task_id is not None:
        where.append("task_id = ?")
        values.append(task_id)
    if submitter is not None:
        # The plus keeps a task's few events from being looked for among all of its submitter's.
        where.append("submitter = ?" if task_id is None else "+submitter = ?")
        values.append(submitter)
    found = streamed(db, f"SELECT * FROM events WHERE {' AND '.join(where)} ORDER BY seq", values)
    return [
        EventView(
            seq=row["seq"], at=_always(row["at"]), task_id=row["task_id"], attempt=row["attempt"],
            from_state=row["from_state"], to_state=row["to_state"], node_id=row["node_id"],
            slot=row["slot"], reason=row["reason"],
            detail=json.loads(row["detail"]) if row["detail"] else None,
        )
        for row in _page(found, limit, "detail")[0]
    ]  # fmt: skip


def event_range(db: Db, submitter: str | None) -> tuple[int, int]:
    """The newest event's seq, and up to which seq some of the submitter's (None: of all) events
    were removed after their time. 0 where there is none."""
    newest = fetch(db, "SELECT seq FROM sqlite_sequence WHERE name = 'events'")
    key = removed_events_key(submitter)
    removed = fetch(db, "SELECT CAST(value AS INTEGER) AS seq FROM meta WHERE key = ?", (key,))
    return newest[0]["seq"] if newest else 0, removed[0]["seq"] if removed else 0


def unfinished_needs(db: Db, task_id: str) -> list[str]:
    """The dependencies that have not succeeded yet, each with its state."""
    rows = fetch(
        db,
        "SELECT n.task_id, n.state FROM dependencies d JOIN tasks n ON n.task_id = d.needs"
        " WHERE d.task_id = ? AND n.state != 'succeeded' ORDER BY n.seq",
        (task_id,),
    )
    return [f"{row['task_id']} ({row['state']})" for row in rows]


def node_of(db: Db, lease_id: str) -> str:
    """Where an attempt ran."""
    rows = fetch(db, "SELECT node_id FROM attempts WHERE lease_id = ?", (lease_id,))
    return str(rows[0]["node_id"]) if rows else "its node"


def ahead_of(db: Db, row: Row) -> int:
    """How many tasks of the lane are before this one."""
    sql = "SELECT count(*) AS n FROM tasks WHERE lane_id = ? AND state = 'queued' AND seq < ?"
    return int(fetch(db, sql, (row["lane_id"], row["seq"]))[0]["n"])


def lane_heads(db: Db) -> list[Row]:
    """Every lane with queued tasks: lane_id, requirements, queued, oldest."""
    return fetch(
        db,
        "SELECT t.lane_id, l.requirements, count(*) AS queued, min(t.seq) AS oldest"
        " FROM tasks t JOIN lanes l USING (lane_id) WHERE t.state = 'queued' GROUP BY t.lane_id",
    )


def queued_ids(db: Db, lane_id: str) -> tuple[int, list[str]]:
    """The newest event, and the queued tasks of a lane in order as of that event."""
    newest = int(db.execute("SELECT coalesce(max(seq), 0) FROM events").get)
    sql = "SELECT task_id FROM tasks WHERE lane_id = ? AND state = 'queued' ORDER BY seq"
    return newest, [task_id for (task_id,) in db.execute(sql, (lane_id,))]


def open_leases(db: Db) -> list[Row]:
    """The rows that the lease table starts from."""
    return fetch(
        db,
        "SELECT t.*, a.acked_at FROM tasks t JOIN attempts a USING (lease_id)"
        " WHERE t.lease_id IS NOT NULL",
    )


def fences(db: Db) -> list[Row]:
    """Cut-off attempts that are not known to be dead: fence, lease_ttl_s, task_id, node_id."""
    return fetch(
        db,
        "SELECT t.fence, t.lease_ttl_s, t.task_id, a.node_id FROM tasks t"
        " JOIN attempts a ON a.lease_id = t.fence WHERE t.fence IS NOT NULL",
    )


def backlog(db: Db) -> list[Row]:
    """Tasks and bytes of each submitter that wait or are queued."""
    return fetch(
        db,
        "SELECT submitter, count(*) AS tasks, sum(spec_bytes) AS bytes FROM tasks"
        " WHERE state IN ('waiting', 'queued') GROUP BY submitter",
    )


def lane_sizes(db: Db) -> list[Row]:
    """How many tasks of each lane wait or are queued, and whose they are."""
    return fetch(
        db,
        "SELECT lane_id, submitter, count(*) AS tasks FROM tasks"
        " WHERE state IN ('waiting', 'queued') GROUP BY lane_id",
    )


def states(db: Db) -> dict[str, int]:
    """How many tasks are in each state."""
    rows = fetch(db, "SELECT state, count(*) AS tasks FROM tasks GROUP BY state")
    return {row["state"]: row["tasks"] for row in rows}


def stored(db: Db) -> int:
    """Bytes that rows refer to; content of several submitters counts for each."""
    sql = "SELECT (SELECT total(size) FROM blobs) + (SELECT total(size) FROM artifacts) AS bytes"
    return int(fetch(db, sql)[0]["bytes"])


def all_rows(db: Db, table: str) -> list[Row]:
    """All nodes or all tokens."""
    return fetch(db, {"nodes": "SELECT * FROM nodes", "tokens": "SELECT * FROM tokens"}[table])


def _error(row: Row) -> TaskError | None:
    return TaskError.model_validate_json(row["error"]) if row["error"] else None


def _always(unix: float) -> Any:
    return moment(unix)


def artifact(db: Db, task_id: str, name: str) -> Row:
    """`sha256` and `size` of an artifact. Raises RaeError `unknown_artifact`."""
    found = fetch(db, "SELECT * FROM artifacts WHERE task_id = ? AND name = ?", (task_id, name))
    if not found:
        raise RaeError("unknown_artifact", f"'{name[:100]}'")
    return found[0]
