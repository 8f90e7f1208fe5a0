"""The ledger's tables. Times are unix seconds, JSON is canonical text."""

from __future__ import annotations

SCHEMA_VERSION = 7

# What came with schema 2: which blobs a task reads, and what is left of tasks after their time.
_CARE = """
CREATE TABLE task_blobs (
    sha256 TEXT NOT NULL, task_id TEXT NOT NULL, PRIMARY KEY (sha256, task_id)
) WITHOUT ROWID;
CREATE INDEX task_blobs_task ON task_blobs (task_id);
CREATE INDEX artifacts_blob ON artifacts (sha256);
CREATE INDEX tasks_finished ON tasks (finished_at) WHERE finished_at IS NOT NULL;

CREATE TABLE summaries (
    day TEXT NOT NULL,
    submitter TEXT NOT NULL,
    kind TEXT NOT NULL,
    state TEXT NOT NULL,
    tasks INTEGER NOT NULL,
    attempts INTEGER NOT NULL,
    failures INTEGER NOT NULL,
    interruptions INTEGER NOT NULL,
    seconds REAL NOT NULL,
    PRIMARY KEY (day, submitter, kind, state)
) WITHOUT ROWID;
"""

READS = """SELECT i.value ->> '$.sha256' AS sha256, t.task_id
    FROM tasks t JOIN specs s USING (seq), json_each(s.spec, '$.inputs') i
    WHERE i.value ->> '$.sha256' IS NOT NULL AND i.value ->> '$.url' IS NULL"""
# Up to schema 4 the spec stood in the task's own row.
_READ_BY_TASKS = "INSERT OR IGNORE INTO task_blobs {};".format(
    READS.replace(" JOIN specs s USING (seq)", "").replace("s.spec", "t.spec")
)

# Where an attempt runs: the machine that its node's session named, or the session itself for a
# client that names none. An SQL expression over a row of `nodes`.
SESSION = "session "
HOLDER = f"coalesce(machine, '{SESSION}' || substr(token_sha256, 1, 16))"
# Older attempts of nodes that name a machine stay without one: a second machine may have registered
# since, so no machine's word about them counts.
_HOLDERS = f"""
ALTER TABLE attempts ADD COLUMN machine TEXT;
UPDATE attempts SET machine = (SELECT {HOLDER} FROM nodes n WHERE n.node_id = attempts.node_id)
    WHERE ended_at IS NULL AND node_id IN (SELECT node_id FROM nodes WHERE machine IS NULL);
"""

_AVOID = "ALTER TABLE tasks ADD COLUMN avoid TEXT;"
# The schema from which on attempts and nodes name where work runs.
HOLDERS_SINCE = 3

# What a task holds megabytes of stands apart from its row, which each transition writes anew and
# lists read by the hundred. `labels` come before the spec, so that they are read without it.
_BODIES = """
CREATE TABLE specs (seq INTEGER PRIMARY KEY, labels TEXT, spec TEXT NOT NULL);
CREATE TABLE results (seq INTEGER PRIMARY KEY, result TEXT NOT NULL);
"""
_DUE = """
CREATE INDEX tasks_due ON tasks (not_before)
    WHERE state = 'waiting' AND unmet = 0 AND fence IS NULL;
"""
# Ended tasks that others need, as long as some of those, beyond `after`, do not know it yet.
_RELEASES = """
CREATE TABLE releases (needs TEXT PRIMARY KEY, after TEXT NOT NULL) WITHOUT ROWID;
"""
# Whether a dependency `d` on a task `n` counts in `unmet`.
OPEN_NEED = """(n.state != 'succeeded' OR EXISTS
    (SELECT 1 FROM releases r WHERE r.needs = d.needs AND d.task_id > r.after))"""
# How many bytes of blobs each submitter has here.
_STORED = """
CREATE TABLE stored (submitter TEXT PRIMARY KEY, bytes INTEGER NOT NULL) WITHOUT ROWID;
"""
# What a small file takes of the disk all the same.
LEAST_BYTES = 4096
BLOB_BYTES = f"max(size, {LEAST_BYTES})"
_APART = f"""{_BODIES}
INSERT INTO specs SELECT seq, spec -> '$.labels', spec FROM tasks;
INSERT INTO results SELECT seq, result FROM tasks WHERE result IS NOT NULL;
ALTER TABLE tasks DROP COLUMN spec;
ALTER TABLE tasks DROP COLUMN result;
ALTER TABLE tasks ADD COLUMN spec_bytes INTEGER NOT NULL DEFAULT 0;
UPDATE tasks SET spec_bytes = (SELECT octet_length(spec) FROM specs s WHERE s.seq = tasks.seq);
DROP INDEX tasks_waiting;
{_DUE}{_RELEASES}{_STORED}
INSERT INTO stored SELECT submitter, sum({BLOB_BYTES}) FROM blobs GROUP BY submitter;
"""

# What an ended task leaves in the ledger: spec and result, which go first when its submitter has
# too much, and its record (row, labels, needs, attempts and history). For `UPDATE tasks AS t`.
KEPT = """kept_bytes = spec_bytes
    + coalesce((SELECT octet_length(result) FROM results r WHERE r.seq = t.seq), 0),
    kept_record = 1024 + coalesce(octet_length(error), 0)
    + (SELECT 512 * count(*) + coalesce(sum(octet_length(detail)), 0)
        FROM events e WHERE e.task_id = t.task_id)
    + (SELECT 512 * count(*) FROM artifacts a WHERE a.task_id = t.task_id)
    + (SELECT coalesce(octet_length(labels), 0) FROM specs s WHERE s.seq = t.seq)
    + (SELECT octet_length(requirements) FROM lanes l WHERE l.lane_id = t.lane_id)"""
_KEPT = """
CREATE TABLE kept (
    submitter TEXT PRIMARY KEY, bytes INTEGER NOT NULL, record INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX tasks_ended ON tasks (submitter, finished_at) WHERE finished_at IS NOT NULL;
CREATE INDEX tasks_kept ON tasks (submitter, finished_at) WHERE kept_bytes > 0;
"""
_KEEP = f"""
ALTER TABLE tasks ADD COLUMN kept_bytes INTEGER NOT NULL DEFAULT 0;
ALTER TABLE tasks ADD COLUMN kept_record INTEGER NOT NULL DEFAULT 0;
UPDATE tasks AS t SET {KEPT} WHERE finished_at IS NOT NULL;
{_KEPT}
INSERT INTO kept SELECT submitter, sum(kept_bytes), sum(kept_record) FROM tasks
    WHERE finished_at IS NOT NULL GROUP BY submitter;
"""

# What lists are filtered by.
_LISTS = """
CREATE INDEX tasks_kind ON tasks (kind, seq);
CREATE INDEX tasks_node ON tasks (node_id, seq) WHERE node_id IS NOT NULL;
CREATE TABLE labels (
    label TEXT NOT NULL, seq INTEGER NOT NULL, PRIMARY KEY (label, seq)
) WITHOUT ROWID;
"""
LABELS = "SELECT key || '=' || value AS label, seq FROM specs, json_each(labels)"

# Of one key at most one such task is there, and any number of those that failed.
ALIVE = "state NOT IN ('failed', 'cancelled', 'expired')"
_KEYS = f"""
CREATE INDEX tasks_key ON tasks (submitter, idempotency_key)
    WHERE idempotency_key IS NOT NULL AND {ALIVE};
"""

# From each older version to the one after it.
MIGRATIONS = {
    1: _CARE + _READ_BY_TASKS,
    2: _HOLDERS,
    3: _AVOID,
    4: _APART,
    5: f"{_KEEP} {_LISTS} INSERT INTO labels {LABELS} ORDER BY 1, 2;",
    6: f"DROP INDEX tasks_key; {_KEYS}",
}

SCHEMA = (
    """
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE lanes (lane_id TEXT PRIMARY KEY, requirements TEXT NOT NULL) WITHOUT ROWID;

CREATE TABLE tasks (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    task_id TEXT NOT NULL UNIQUE,
    submitter TEXT NOT NULL,
    state TEXT NOT NULL,
    kind TEXT NOT NULL,
    priority INTEGER NOT NULL,
    lane_id TEXT NOT NULL,
    spec_bytes INTEGER NOT NULL DEFAULT 0,
    spec_sha256 TEXT NOT NULL,
    idempotency_key TEXT,
    lease_ttl_s REAL NOT NULL,
    timeout_s REAL NOT NULL,
    max_attempts INTEGER NOT NULL,
    attempts INTEGER NOT NULL DEFAULT 0,
    failures INTEGER NOT NULL DEFAULT 0,
    interruptions INTEGER NOT NULL DEFAULT 0,
    in_row INTEGER NOT NULL DEFAULT 0,
    unmet INTEGER NOT NULL DEFAULT 0,
    not_before REAL,
    expires_at REAL,
    -- The lease of an attempt that was cut off and may still be dying on its node.
    fence TEXT,
    lease_id TEXT,
    node_id TEXT,
    slot TEXT,
    created_at REAL NOT NULL,
    updated_at REAL NOT NULL,
    finished_at REAL,
    reason TEXT,
    progress REAL,
    note TEXT,
    error TEXT,
    -- JSON: the nodes where it failed; others go before them.
    avoid TEXT,
    -- Of an ended task, as `kept` counts them.
    kept_bytes INTEGER NOT NULL DEFAULT 0,
    kept_record INTEGER NOT NULL DEFAULT 0
);
CREATE INDEX tasks_queue ON tasks (lane_id, seq) WHERE state = 'queued';
CREATE INDEX tasks_expiring ON tasks (expires_at)
    WHERE expires_at IS NOT NULL AND state IN ('queued', 'waiting');
CREATE INDEX tasks_leased ON tasks (lease_id) WHERE lease_id IS NOT NULL;
CREATE INDEX tasks_fenced ON tasks (fence) WHERE fence IS NOT NULL;
CREATE INDEX tasks_listing ON tasks (submitter, seq);
CREATE INDEX tasks_state ON tasks (state, seq);

CREATE TABLE dependencies (
    task_id TEXT NOT NULL, needs TEXT NOT NULL, PRIMARY KEY (task_id, needs)
) WITHOUT ROWID;
CREATE INDEX dependencies_needs ON dependencies (needs);

CREATE TABLE attempts (
    lease_id TEXT PRIMARY KEY,
    task_id TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    node_id TEXT NOT NULL,
    slot TEXT NOT NULL,
    gpu_uuids TEXT,
    vram_mb INTEGER,
    state TEXT NOT NULL,
    reason TEXT,
    claimed_at REAL NOT NULL,
    acked_at REAL,
    ended_at REAL,
    result_sha256 TEXT,
    machine TEXT
) WITHOUT ROWID;
CREATE UNIQUE INDEX attempts_task ON attempts (task_id, attempt);
CREATE INDEX attempts_open ON attempts (node_id) WHERE ended_at IS NULL;

CREATE TABLE artifacts (
    task_id TEXT NOT NULL,
    name TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    size INTEGER NOT NULL,
    type TEXT NOT NULL,
    PRIMARY KEY (task_id, name)
) WITHOUT ROWID;

CREATE TABLE blobs (
    sha256 TEXT NOT NULL, submitter TEXT NOT NULL, size INTEGER NOT NULL, created_at REAL NOT NULL,
    PRIMARY KEY (sha256, submitter)
) WITHOUT ROWID;

CREATE TABLE events (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    at REAL NOT NULL,
    submitter TEXT,
    task_id TEXT,
    attempt INTEGER,
    from_state TEXT,
    to_state TEXT,
    node_id TEXT,
    slot TEXT,
    reason TEXT NOT NULL,
    detail TEXT
);
CREATE INDEX events_task ON events (task_id, seq);
CREATE INDEX events_submitter ON events (submitter, seq);

CREATE TABLE nodes (
    node_id TEXT PRIMARY KEY,
    kind TEXT NOT NULL,
    trusted INTEGER NOT NULL,
    epoch INTEGER NOT NULL,
    revoked INTEGER NOT NULL DEFAULT 0,
    online INTEGER NOT NULL DEFAULT 0,
    draining TEXT,
    cordoned TEXT,
    infra_in_row INTEGER NOT NULL DEFAULT 0,
    token_sha256 TEXT,
    old_token_sha256 TEXT,
    token_expires REAL,
    machine TEXT,
    instance TEXT,
    info TEXT,
    last_seen REAL
) WITHOUT ROWID;

CREATE TABLE tokens (
    token_id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    sha256 TEXT NOT NULL UNIQUE,
    created_at REAL NOT NULL,
    revoked_at REAL
) WITHOUT ROWID;
"""
    + _CARE
    + _BODIES
    + _DUE
    + _RELEASES
    + _STORED
    + _KEPT
    + _LISTS
    + _KEYS
)
