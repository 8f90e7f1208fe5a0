"""Many tasks in a ledger at once, written by SQL, as control would have them; control is stopped.

For tests and measurements of what costs by the size of a ledger.
"""

from __future__ import annotations

import hashlib
import json
import time
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path

import apsw

from rae_control.core.lanes import lane_id
from rae_control.ledger.schema import KEPT

_FILL = f"""
CREATE TEMP TABLE n AS
    WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < :rows)
    SELECT i, :name || '-' || i AS task_id,
        CASE i % 3 WHEN 0 THEN replace(:text, '"no "', '"yes"') ELSE :text END AS spec FROM n;
INSERT OR IGNORE INTO lanes VALUES (:lane, :requirements);
INSERT INTO tasks (seq, task_id, submitter, state, kind, priority, lane_id, spec_bytes, spec_sha256,
        lease_ttl_s, timeout_s, max_attempts, unmet, not_before, expires_at, created_at, updated_at,
        finished_at, reason)
    SELECT :first + i, task_id, :submitter, :state, 'cli', 5, :lane, :size, :digest,
        120, 3600, 3, :needs IS NOT NULL, :not_before, :expires_at, :now, :now, :finished, :reason
    FROM n;
INSERT INTO specs SELECT :first + i, spec -> '$.labels', spec FROM n;
INSERT INTO labels SELECT key || '=' || value, :first + i FROM n, json_each(spec, '$.labels');
INSERT INTO events (at, submitter, task_id, to_state, reason)
    SELECT :now, :submitter, task_id, :begun, 'submitted' FROM n;
INSERT INTO events (at, submitter, task_id, from_state, to_state, reason)
    SELECT :now, :submitter, task_id, 'queued', 'cancelled', 'cancelled' FROM n WHERE :ended;
INSERT INTO dependencies SELECT task_id, :needs FROM n WHERE :needs IS NOT NULL;
UPDATE tasks AS t SET {KEPT} WHERE :ended AND seq > :first;
INSERT INTO kept SELECT submitter, sum(kept_bytes), sum(kept_record) FROM tasks
    WHERE :ended AND seq > :first GROUP BY submitter
    ON CONFLICT DO UPDATE SET bytes = bytes + excluded.bytes, record = record + excluded.record;
DROP TABLE n;
"""  # noqa: S608 - our own text


@dataclass(frozen=True, slots=True)
class Rows:
    """So many tasks of a submitter, `NAME-1` and so on, of priority 5.

    `queued` and `waiting` ones stand in the lane of a command without needs; others were cancelled
    just now. Each third one has the label `third=yes`. `needs` is a task that is there already,
    which waiting ones depend on; `not_before` and `expires_at` are unix seconds.
    """

    name: str
    number: int
    submitter: str
    state: str = "cancelled"
    needs: str | None = None
    not_before: float | None = None
    expires_at: float | None = None


def fill(data: Path, *parts: Rows) -> None:
    """Write them all, and empty the write-ahead log."""
    with closing(apsw.Connection(str(data / "ledger.db"))) as db:
        db.pragma("cache_size", -200_000)
        with db:
            for part in parts:
                _fill(db, part)
        db.pragma("wal_checkpoint(truncate)")


def _fill(db: apsw.Connection, part: Rows) -> None:
    now, ended, needs = time.time(), part.state == "cancelled", {"runners": ["cli"]}
    spec = {"kind": "cli", "labels": {"third": "no "}, "params": {"command": "true"}}
    if part.needs:
        spec["depends_on"] = [part.needs]
    text = json.dumps(spec, separators=(",", ":"), sort_keys=True)
    lane = lane_id(5, part.submitter, needs)
    values = {
        "name": part.name, "rows": part.number, "submitter": part.submitter, "state": part.state,
        "lane": lane, "size": len(text), "digest": hashlib.sha256(text.encode()).hexdigest(),
        "needs": part.needs, "now": now, "text": text, "requirements": json.dumps(needs),
        "not_before": part.not_before, "expires_at": part.expires_at, "ended": ended,
        "finished": now if ended else None, "begun": "queued" if ended else part.state,
        "reason": "cancelled" if ended else "submitted",
        "first": db.execute("SELECT coalesce(max(seq), 0) FROM tasks").get,
    }  # fmt: skip
    db.execute(_FILL, values)
