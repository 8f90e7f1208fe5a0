-- A ledger of schema 1 with a task in every state, as that version wrote it.
-- The values of various per-database settings
PRAGMA page_size=4096;
-- PRAGMA encoding='UTF-8';
-- PRAGMA auto_vacuum=NONE;
-- PRAGMA max_page_count=4294967294;

BEGIN TRANSACTION;

-- Table  artifacts
DROP TABLE IF EXISTS artifacts;
CREATE TABLE artifacts (
    task_id TEXT NOT NULL,
    name TEXT NOT NULL,
    attempt INTEGER NOT NULL,
    sha256 TEXT NOT NULL,
    size INTEGER NOT NULL,
    type TEXT NOT NULL,
    PRIMARY KEY (task_id, name)
) WITHOUT ROWID;
INSERT INTO artifacts VALUES('succeeded','out.txt',1,'486ea46224d1bb4fb680f34f7c9ad96a8f24ec88be73ea8e5a6c65260e9cb8a7',5,'text/plain');

-- Table  attempts
DROP TABLE IF EXISTS attempts;
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
    result_sha256 TEXT
) WITHOUT ROWID;
INSERT INTO attempts VALUES('34206de7-9523b44bfa8ba38a','failed',1,'n1','cpu0','[]',NULL,'failed','E_EXIT',1795274400.2759993,1795274400.2759993,1795274400.2759993,'6ae984e109bff7bb5d8c8c1c05d8e90b10f5920a6fa87b4126692b49faaa4f9a');
INSERT INTO attempts VALUES('34206de7-962639c6bb39bbe2','running',1,'n1','cpu0','[]',NULL,'running',NULL,1795274400.2759993,1795274400.2759993,NULL,NULL);
INSERT INTO attempts VALUES('34206de7-9d579216511542c9','requeued',3,'n1','cpu0','[]',NULL,'succeeded','succeeded',1795274400.2759993,1795274400.2759993,1795274400.2759993,'585f207e0e13eb5803220e3f7fe7540019a749f348b2e5a14721ccfa44e323b2');
INSERT INTO attempts VALUES('34206de7-9f427e75e0f8b4c9','succeeded',1,'n1','cpu0','[]',NULL,'succeeded','succeeded',1795274400.2759993,1795274400.2759993,1795274400.2759993,'5183b8ffbe6588a75fd00fb7f7fad22c78957232a8157a9d0e532872f176044a');
INSERT INTO attempts VALUES('34206de7-a81b9522b5285a13','requeued',2,'n1','cpu0','[]',NULL,'interrupted','yield_owner',1795274400.2759993,1795274400.2759993,1795274400.2759993,NULL);
INSERT INTO attempts VALUES('34206de7-dc0430d946c200c9','leased',1,'n1','cpu1','[]',NULL,'leased',NULL,1795274400.2759993,NULL,NULL,NULL);
INSERT INTO attempts VALUES('34206de7-f7f3921a7baa58f6','cancelled',1,'n1','cpu0','[]',NULL,'cancelled','cancelled',1795274400.2759993,1795274400.2759993,1795274400.2759993,NULL);
INSERT INTO attempts VALUES('34206de7-fe8757a9367c6bb5','requeued',1,'n1','cpu0','[]',NULL,'failed','E_DENY',1795274400.2759993,1795274400.2759993,1795274400.2759993,'ae75c66a986215a1c214eb9168b7ebe7aad380252a1ff16d8bbf3dc846c5f960');
-- Triggers and indices on  attempts
CREATE INDEX attempts_open ON attempts (node_id) WHERE ended_at IS NULL;
CREATE UNIQUE INDEX attempts_task ON attempts (task_id, attempt);

-- Table  blobs
DROP TABLE IF EXISTS blobs;
CREATE TABLE blobs (
    sha256 TEXT NOT NULL, submitter TEXT NOT NULL, size INTEGER NOT NULL, created_at REAL NOT NULL,
    PRIMARY KEY (sha256, submitter)
) WITHOUT ROWID;
INSERT INTO blobs VALUES('2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824','alice',5,1795274400.2759993);

-- Table  dependencies
DROP TABLE IF EXISTS dependencies;
CREATE TABLE dependencies (
    task_id TEXT NOT NULL, needs TEXT NOT NULL, PRIMARY KEY (task_id, needs)
) WITHOUT ROWID;
INSERT INTO dependencies VALUES('waiting','running');
INSERT INTO dependencies VALUES('queued','succeeded');
-- Triggers and indices on  dependencies
CREATE INDEX dependencies_needs ON dependencies (needs);

-- Table  events
DROP TABLE IF EXISTS events;
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
INSERT INTO events VALUES(1,1795274400.2759993,NULL,NULL,NULL,NULL,NULL,'n1',NULL,'enrolled',NULL);
INSERT INTO events VALUES(2,1795274400.2759993,NULL,NULL,NULL,'offline','online','n1',NULL,'registered',NULL);
INSERT INTO events VALUES(3,1795274400.2759993,'alice','succeeded',NULL,NULL,'queued',NULL,NULL,'submitted',NULL);
INSERT INTO events VALUES(4,1795274400.2759993,'alice','succeeded',1,'queued','leased','n1','cpu0','claimed',NULL);
INSERT INTO events VALUES(5,1795274400.2759993,'alice','succeeded',1,'leased','running','n1','cpu0','acked',NULL);
INSERT INTO events VALUES(6,1795274400.2759993,'alice','succeeded',1,'running','succeeded','n1','cpu0','succeeded',NULL);
INSERT INTO events VALUES(7,1795274400.2759993,'alice','succeeded',1,NULL,NULL,'n1',NULL,'stale_result',NULL);
INSERT INTO events VALUES(8,1795274400.2759993,'alice','failed',NULL,NULL,'queued',NULL,NULL,'submitted',NULL);
INSERT INTO events VALUES(9,1795274400.2759993,'alice','failed',1,'queued','leased','n1','cpu0','claimed',NULL);
INSERT INTO events VALUES(10,1795274400.2759993,'alice','failed',1,'leased','running','n1','cpu0','acked',NULL);
INSERT INTO events VALUES(11,1795274400.2759993,'alice','failed',1,'running','failed','n1','cpu0','E_EXIT','"no"');
INSERT INTO events VALUES(12,1795274400.2759993,'alice','expired',NULL,NULL,'queued',NULL,NULL,'submitted',NULL);
INSERT INTO events VALUES(13,1795274400.2759993,'alice','expired',NULL,'queued','expired',NULL,NULL,'expired',NULL);
INSERT INTO events VALUES(14,1795274400.2759993,'alice','requeued',NULL,NULL,'queued',NULL,NULL,'submitted',NULL);
INSERT INTO events VALUES(15,1795274400.2759993,'alice','requeued',1,'queued','leased','n1','cpu0','claimed',NULL);
INSERT INTO events VALUES(16,1795274400.2759993,'alice','requeued',1,'leased','running','n1','cpu0','acked',NULL);
INSERT INTO events VALUES(17,1795274400.2759993,'alice','requeued',1,'running','failed','n1','cpu0','E_DENY','"no"');
INSERT INTO events VALUES(18,1795274400.2759993,'alice','requeued',NULL,'failed','waiting',NULL,NULL,'requeued',NULL);
INSERT INTO events VALUES(19,1795274400.2759993,'alice','requeued',NULL,'waiting','queued',NULL,NULL,'requeued',NULL);
INSERT INTO events VALUES(20,1795274400.2759993,'alice','requeued',2,'queued','leased','n1','cpu0','claimed',NULL);
INSERT INTO events VALUES(21,1795274400.2759993,'alice','requeued',2,'leased','running','n1','cpu0','acked',NULL);
INSERT INTO events VALUES(22,1795274400.2759993,'alice','requeued',2,'running','queued','n1','cpu0','yield_owner','{"detail": null, "stopped_ms": null}');
INSERT INTO events VALUES(23,1795274400.2759993,'alice','requeued',3,'queued','leased','n1','cpu0','claimed',NULL);
INSERT INTO events VALUES(24,1795274400.2759993,'alice','requeued',3,'leased','running','n1','cpu0','acked',NULL);
INSERT INTO events VALUES(25,1795274400.2759993,'alice','requeued',3,'running','succeeded','n1','cpu0','succeeded',NULL);
INSERT INTO events VALUES(26,1795274400.2759993,'alice','cancelled',NULL,NULL,'queued',NULL,NULL,'submitted',NULL);
INSERT INTO events VALUES(27,1795274400.2759993,'alice','cancelled',1,'queued','leased','n1','cpu0','claimed',NULL);
INSERT INTO events VALUES(28,1795274400.2759993,'alice','cancelled',1,'leased','running','n1','cpu0','acked',NULL);
INSERT INTO events VALUES(29,1795274400.2759993,'alice','cancelled',1,'running','cancelled','n1','cpu0','cancelled','"enough"');
INSERT INTO events VALUES(30,1795274400.2759993,'alice','running',NULL,NULL,'queued',NULL,NULL,'submitted',NULL);
INSERT INTO events VALUES(31,1795274400.2759993,'alice','running',1,'queued','leased','n1','cpu0','claimed',NULL);
INSERT INTO events VALUES(32,1795274400.2759993,'alice','running',1,'leased','running','n1','cpu0','acked',NULL);
INSERT INTO events VALUES(33,1795274400.2759993,'alice','leased',NULL,NULL,'queued',NULL,NULL,'submitted',NULL);
INSERT INTO events VALUES(34,1795274400.2759993,'alice','leased',1,'queued','leased','n1','cpu1','claimed',NULL);
INSERT INTO events VALUES(35,1795274400.2759993,'alice','waiting',NULL,NULL,'waiting',NULL,NULL,'submitted',NULL);
INSERT INTO events VALUES(36,1795274400.2759993,'alice','queued',NULL,NULL,'queued',NULL,NULL,'submitted',NULL);
-- Triggers and indices on  events
CREATE INDEX events_submitter ON events (submitter, seq);
CREATE INDEX events_task ON events (task_id, seq);

-- Table  lanes
DROP TABLE IF EXISTS lanes;
CREATE TABLE lanes (lane_id TEXT PRIMARY KEY, requirements TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO lanes VALUES('p5.alice.471fdb9a2a','{"runners":["cli"]}');
INSERT INTO lanes VALUES('p9.alice.471fdb9a2a','{"runners":["cli"]}');

-- Table  meta
DROP TABLE IF EXISTS meta;
CREATE TABLE meta (key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
INSERT INTO meta VALUES('created_at','1795274398.7759993');
INSERT INTO meta VALUES('incarnation','34206de7f35119a9');

-- Table  nodes
DROP TABLE IF EXISTS nodes;
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
INSERT INTO nodes VALUES('n1','hmac',0,1,0,1,NULL,NULL,0,'1dd57acd098eaf6f13dab4936ddca7368d5b0a5f7971b2ae17623b6b42bb50bd',NULL,1795317600.2759993,'m1','i1','{"node_id": "n1", "capabilities": {"runners": ["cli", "python"]}, "ack": true, "instance": "i1", "machine": "m1", "slots": ["cpu0", "cpu1", "cpu2", "cpu3"], "availability": "open"}',1795274400.2759993);

-- Table  tasks
DROP TABLE IF EXISTS tasks;
CREATE TABLE tasks (
    seq INTEGER PRIMARY KEY AUTOINCREMENT,
    task_id TEXT NOT NULL UNIQUE,
    submitter TEXT NOT NULL,
    state TEXT NOT NULL,
    kind TEXT NOT NULL,
    priority INTEGER NOT NULL,
    lane_id TEXT NOT NULL,
    spec TEXT NOT NULL,
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
    result TEXT,
    error TEXT
);
INSERT INTO tasks VALUES(1,'succeeded','alice','succeeded','cli',5,'p5.alice.471fdb9a2a','{"artifacts":[{"max_mb":1.0,"name":"out.txt","type":"text/plain"}],"depends_on":[],"idempotency_key":"k1","inputs":{"f":{"sha256":"2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"}},"kind":"cli","labels":{},"max_attempts":3,"params":{"command":"true"},"priority":5,"requirements":{},"timeout_s":3600.0}','ce4d0b82cd83e28049ac0e220fe7a78a92e95c244eb757dea16f8a2bf20cb0b3','k1',120.0,3600.0,3,1,0,0,0,0,NULL,NULL,NULL,NULL,'n1','cpu0',1795274400.2759993,1795274400.2759993,1795274400.2759993,'succeeded',100.0,NULL,'{"n":1}',NULL);
INSERT INTO tasks VALUES(2,'failed','alice','failed','cli',5,'p5.alice.471fdb9a2a','{"artifacts":[],"depends_on":[],"inputs":{},"kind":"cli","labels":{},"max_attempts":1,"params":{"command":"true"},"priority":5,"requirements":{},"timeout_s":3600.0}','664b1cd6c657fbc07679e10605ba0bf7507b222c020e70364b842f29d9db5dde',NULL,120.0,3600.0,1,1,1,0,0,0,NULL,NULL,NULL,NULL,NULL,NULL,1795274400.2759993,1795274400.2759993,1795274400.2759993,'E_EXIT',NULL,NULL,NULL,'{"code": "E_EXIT", "message": "no"}');
INSERT INTO tasks VALUES(3,'expired','alice','expired','cli',5,'p5.alice.471fdb9a2a','{"artifacts":[],"depends_on":[],"expires_at":"2027-01-01T00:00:00Z","inputs":{},"kind":"cli","labels":{},"max_attempts":3,"params":{"command":"true"},"priority":5,"requirements":{},"timeout_s":3600.0}','64df89abda287917c03f7acbb94e8514ec773d13ca73f87ac1948fcfb4db6ea5',NULL,120.0,3600.0,3,0,0,0,0,0,NULL,1.0,NULL,NULL,NULL,NULL,1795274400.2759993,1795274400.2759993,1795274400.2759993,'expired',NULL,NULL,NULL,NULL);
INSERT INTO tasks VALUES(4,'requeued','alice','succeeded','cli',9,'p9.alice.471fdb9a2a','{"artifacts":[],"depends_on":[],"inputs":{},"kind":"cli","labels":{},"max_attempts":3,"params":{"command":"true"},"priority":9,"requirements":{},"timeout_s":3600.0}','fbb8b59e53d56a64b831a016203a8fcb1cbbbf806901446fc8f00bfecde3fa51',NULL,120.0,3600.0,3,3,0,1,0,0,NULL,NULL,NULL,NULL,'n1','cpu0',1795274400.2759993,1795274400.2759993,1795274400.2759993,'succeeded',100.0,NULL,NULL,NULL);
INSERT INTO tasks VALUES(5,'cancelled','alice','cancelled','cli',5,'p5.alice.471fdb9a2a','{"artifacts":[],"depends_on":[],"inputs":{},"kind":"cli","labels":{},"max_attempts":3,"params":{"command":"true"},"priority":5,"requirements":{},"timeout_s":3600.0}','2940f7f8ebd4c0e5639343bfad04038d3a4cf868be8541af513ca162a77696aa',NULL,120.0,3600.0,3,1,0,0,0,0,NULL,NULL,'34206de7-f7f3921a7baa58f6',NULL,'n1','cpu0',1795274400.2759993,1795274400.2759993,1795274400.2759993,'cancelled',NULL,NULL,NULL,NULL);
INSERT INTO tasks VALUES(6,'running','alice','running','cli',5,'p5.alice.471fdb9a2a','{"artifacts":[],"depends_on":[],"inputs":{},"kind":"cli","labels":{},"max_attempts":3,"params":{"command":"true"},"priority":5,"requirements":{},"timeout_s":3600.0}','2940f7f8ebd4c0e5639343bfad04038d3a4cf868be8541af513ca162a77696aa',NULL,120.0,3600.0,3,1,0,0,0,0,NULL,NULL,NULL,'34206de7-962639c6bb39bbe2','n1','cpu0',1795274400.2759993,1795274400.2759993,NULL,'acked',NULL,NULL,NULL,NULL);
INSERT INTO tasks VALUES(7,'leased','alice','leased','cli',5,'p5.alice.471fdb9a2a','{"artifacts":[],"depends_on":[],"inputs":{},"kind":"cli","labels":{},"max_attempts":3,"params":{"command":"true"},"priority":5,"requirements":{},"timeout_s":3600.0}','2940f7f8ebd4c0e5639343bfad04038d3a4cf868be8541af513ca162a77696aa',NULL,120.0,3600.0,3,1,0,0,0,0,NULL,NULL,NULL,'34206de7-dc0430d946c200c9','n1','cpu1',1795274400.2759993,1795274400.2759993,NULL,'claimed',NULL,NULL,NULL,NULL);
INSERT INTO tasks VALUES(8,'waiting','alice','waiting','cli',5,'p5.alice.471fdb9a2a','{"artifacts":[],"depends_on":["running"],"inputs":{},"kind":"cli","labels":{"a":"b"},"max_attempts":3,"params":{"command":"true"},"priority":5,"requirements":{},"timeout_s":3600.0}','53fabf86b644cc19d48b0f02a04ae99976baf0b2e052f9e8f36476a5438cfa08',NULL,120.0,3600.0,3,0,0,0,0,1,NULL,NULL,NULL,NULL,NULL,NULL,1795274400.2759993,1795274400.2759993,NULL,'submitted',NULL,NULL,NULL,NULL);
INSERT INTO tasks VALUES(9,'queued','alice','queued','cli',5,'p5.alice.471fdb9a2a','{"artifacts":[],"depends_on":[],"idempotency_key":"k2","inputs":{"f":{"sha256":"2cf24dba5fb0a30e26e83b2ac5b9e29e1b161e5c1fa7425e73043362938b9824"},"g":{"artifact":"out.txt","from_task":"succeeded"}},"kind":"cli","labels":{},"max_attempts":3,"params":{"command":"true"},"priority":5,"requirements":{},"timeout_s":3600.0}','4219720e7677cb13f5b15e26260173a307741e73028d4add85fb92c9149781cd','k2',120.0,3600.0,3,0,0,0,0,0,NULL,NULL,NULL,NULL,NULL,NULL,1795274400.2759993,1795274400.2759993,NULL,'submitted',NULL,NULL,NULL,NULL);
-- Triggers and indices on  tasks
CREATE INDEX tasks_expiring ON tasks (expires_at)
    WHERE expires_at IS NOT NULL AND state IN ('queued', 'waiting');
CREATE INDEX tasks_fenced ON tasks (fence) WHERE fence IS NOT NULL;
CREATE INDEX tasks_key ON tasks (submitter, idempotency_key) WHERE idempotency_key IS NOT NULL;
CREATE INDEX tasks_leased ON tasks (lease_id) WHERE lease_id IS NOT NULL;
CREATE INDEX tasks_listing ON tasks (submitter, seq);
CREATE INDEX tasks_queue ON tasks (lane_id, seq) WHERE state = 'queued';
CREATE INDEX tasks_state ON tasks (state, seq);
CREATE INDEX tasks_waiting ON tasks (not_before) WHERE state = 'waiting';

-- Table  tokens
DROP TABLE IF EXISTS tokens;
CREATE TABLE tokens (
    token_id TEXT PRIMARY KEY,
    name TEXT NOT NULL,
    role TEXT NOT NULL,
    sha256 TEXT NOT NULL UNIQUE,
    created_at REAL NOT NULL,
    revoked_at REAL
) WITHOUT ROWID;
INSERT INTO tokens VALUES('063e394989cc','root','admin','38e2b970a75b11c1582dd959d6e9d315cfda1006518133eb9721027f089dc367',1795274398.7759993,NULL);
INSERT INTO tokens VALUES('28c77b3da34f','eve','read','d826c06120cbe0bc3704ae39afb49739b78f5de49bdf0fa4464a78e0e13ecb95',1795274398.7759993,NULL);
INSERT INTO tokens VALUES('37981ea80d07','alice','submit','19c28a50b1a09097592e7ceddb7e0771ff4d469747541a7536579eef857e05ce',1795274398.7759993,NULL);
INSERT INTO tokens VALUES('465c1e7b8f75','bob','submit','800480042268218663feef3ea54d81ed3f976c98c38d5fd7afbe22810ec16334',1795274398.7759993,NULL);

-- For primary key autoincrements the next id to use is stored in
-- sqlite_sequence
DELETE FROM main.sqlite_sequence WHERE name='events';
INSERT INTO main.sqlite_sequence VALUES ('events', 36);
DELETE FROM main.sqlite_sequence WHERE name='tasks';
INSERT INTO main.sqlite_sequence VALUES ('tasks', 9);

-- Database header
pragma user_version=1;

COMMIT TRANSACTION;
