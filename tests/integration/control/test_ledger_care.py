"""Retention, check, backup, restore and migration over real ledgers."""

from __future__ import annotations

import hashlib
import io
import os
import shutil
import stat
from contextlib import closing
from datetime import datetime, timezone
from functools import partial
from pathlib import Path
from typing import Any

import apsw
import pytest

from rae_control.config import ControlConfig
from rae_control.errors import BackupDamaged, ConfigError, LedgerLocked, LedgerTooNew
from rae_control.ledger import due
from rae_control.ledger.base import fetch
from rae_control.ledger.sqlite import Ledger
from rae_control.maintenance import backup
from rae_control.mesh.mesh import Mesh
from rae_control.server.app import create_app
from tests.integration.control.conftest import (
    ECHO,
    Api,
    ManualClock,
    Server,
    build,
    multipart,
)

DAY = 86400.0
V1 = Path(__file__).with_name("ledger_v1.sql")


def finish(api: Api, body: dict[str, Any], content: bytes = b"made") -> dict[str, Any]:
    """Run a task to its end with one artifact and a log."""
    api.submit({**body, "artifacts": [{"name": "out.txt", "type": "text/plain"}]})
    ref = api.take("n1")
    api.node("n1", "POST", "/tasks/log", {**ref, "offset": 0, "data": "aGk="})
    raw = multipart({**ref, "status": "succeeded"}, "out.txt", content)
    kind = "multipart/form-data; boundary=xyz"
    assert api.node("n1", "POST", "/tasks/result", raw, content_type=kind).status_code == 200
    return ref


def rules(data: Path, *, deep: bool = False) -> list[str]:
    return [item.rule for item in backup.check_folder(data, deep=deep)]


def rows(mesh: Mesh, sql: str) -> list[dict[str, Any]]:
    return mesh.read(lambda db: fetch(db, sql))


def age_files(folder: Path, seconds: float) -> None:
    for path in folder.rglob("*"):
        old = path.stat().st_mtime - seconds
        os.utime(path, (old, old))


def test_finished_tasks_are_summarised_after_their_time(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    api.join("n1")
    sha = api.blob(b"input")
    spec = {**ECHO, "task_id": "old", "inputs": {"f": {"sha256": sha}}, "labels": {"run": "1"}}
    ref = finish(api, spec)
    api.submit({**ECHO, "task_id": "cancelled"})
    api.rae("POST", "/tasks/cancelled/cancel", {})
    log = mesh.data / "logs" / f"old.{ref['attempt']}.log"
    assert log.exists()
    clock.advance(89 * DAY)
    mesh.retention.sweep()
    assert len(rows(mesh, "SELECT 1 FROM tasks")) == 2
    clock.advance(2 * DAY)
    api.submit({**ECHO, "task_id": "young"})
    mesh.retention.sweep()
    assert [row["task_id"] for row in rows(mesh, "SELECT task_id FROM tasks")] == ["young"]
    found = rows(mesh, "SELECT submitter, kind, state, tasks, attempts FROM summaries")
    assert found == [
        {"submitter": "alice", "kind": "cli", "state": state, "tasks": 1, "attempts": attempts}
        for state, attempts in (("cancelled", 0), ("succeeded", 1))
    ]
    assert not log.exists()
    assert not [path for path in (mesh.data / "blobs").rglob("*") if path.is_file()]
    assert mesh.states == {**dict.fromkeys(mesh.states, 0), "queued": 1}
    assert rules(mesh.data) == []


def test_a_dependency_of_a_live_task_is_kept_and_a_dead_chain_goes_at_once(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    api.submit({**ECHO, "task_id": "c0"})
    for number in range(1, 6):
        api.submit({**ECHO, "task_id": f"c{number}", "depends_on": [f"c{number - 1}"]})
    api.join("n1")
    finish(api, {**ECHO, "task_id": "needed", "priority": 9})
    source = {"f": {"from_task": "needed", "artifact": "out.txt"}}
    api.submit({**ECHO, "task_id": "live", "inputs": source, "not_before": "2190-01-01T00:00:00Z"})
    api.rae("POST", "/tasks/c0/cancel", {})
    clock.advance(100 * DAY)
    mesh.retention.sweep()
    left = {row["task_id"] for row in rows(mesh, "SELECT task_id FROM tasks")}
    assert left == {"needed", "live"}
    assert rules(mesh.data) == []


def test_a_fresh_upload_and_a_repeated_one_have_their_grace(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    sha, other = api.blob(b"kept"), api.blob(b"dropped")
    clock.advance(23 * 3600)
    assert api.rae("HEAD", f"/blobs/{sha}").status_code == 200
    clock.advance(2 * 3600)
    mesh.retention.sweep()
    assert api.rae("HEAD", f"/blobs/{sha}").status_code == 200
    assert api.rae("HEAD", f"/blobs/{other}").status_code == 404
    assert not mesh.blobs.path(other).exists()


def test_bytes_of_a_result_that_was_never_taken_are_removed_and_shared_ones_stay(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    api.join("n1")
    finish(api, ECHO, b"shared")
    mesh.blobs.add(io.BytesIO(b"orphan"), 100)  # stored, and then its lease was over
    before = {path.name for path in (mesh.data / "blobs").rglob("*") if path.is_file()}
    age_files(mesh.data / "blobs", 2 * DAY)
    mesh.retention.sweep()
    after = {path.name for path in (mesh.data / "blobs").rglob("*") if path.is_file()}
    assert (len(before), len(after)) == (2, 1)
    assert rules(mesh.data, deep=True) == []


def test_nothing_is_removed_while_a_backup_reads(api: Api, mesh: Mesh, clock: ManualClock) -> None:
    api.submit({**ECHO, "task_id": "t"})
    api.rae("POST", "/tasks/t/cancel", {})
    clock.advance(100 * DAY)
    with backup.files_held(mesh.data):
        mesh.retention.sweep()
        assert len(rows(mesh, "SELECT 1 FROM tasks")) == 1
    mesh.retention.sweep()
    assert rows(mesh, "SELECT 1 FROM tasks") == rows(mesh, "SELECT 1 FROM lanes") == []


def test_h9_a_full_disk_makes_room_by_itself_and_loses_no_log(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    api.join("n1")
    ref = finish(api, {**ECHO, "task_id": "old"})
    mesh.blobs.add(io.BytesIO(b"nobody knows me"), 100)
    mesh.logs.write("nobody", 1, 0, b"me neither")
    for folder in ("blobs", "logs"):
        age_files(mesh.data / folder, 2 * DAY)
    clock.advance(100 * DAY)
    # As on a full disk: no transaction can be written, in the middle of a sweep.
    mesh.write(lambda tx: tx.run(
        "CREATE TRIGGER full BEFORE DELETE ON tasks BEGIN SELECT RAISE(ABORT, 'full'); END"
    ))  # fmt: skip
    with pytest.raises(apsw.ConstraintError):
        mesh.retention.sweep()
    logs = [path.name for path in (mesh.data / "logs").iterdir()]
    assert logs == [f"old.{ref['attempt']}.log"]
    assert len([path for path in (mesh.data / "blobs").rglob("*") if path.is_file()]) == 1
    mesh.write(lambda tx: tx.run("DROP TRIGGER full"))
    mesh.retention.sweep()
    assert not list((mesh.data / "logs").iterdir())
    assert rows(mesh, "SELECT 1 FROM events") == []


def test_h10_control_is_not_ready_for_submits_on_a_low_disk(
    tmp_path: Path, redis_server: Server, clock: ManualClock, config: ControlConfig
) -> None:
    config = config.model_copy(update={"low_water_bytes": 2**60})
    low = build(tmp_path, redis_server, clock, config)
    try:
        client = create_app(low).test_client()
        answer = client.get("/readyz")
        assert (answer.status_code, answer.json["rc"]) == (503, "disk_low")
        assert client.get("/healthz").status_code == 200
    finally:
        low.close()


def test_h8_what_became_due_is_written_in_small_batches(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    later = datetime.fromtimestamp(clock.wall() + 60, tz=timezone.utc).isoformat()
    for number in range(8):
        api.submit({**ECHO, "task_id": f"t{number}", "not_before": later})
    clock.advance(61)
    turns = iter([True, True, False])
    assert mesh.write(partial(due.due, go_on=lambda: next(turns))) == 3
    for _ in range(2):  # the first one finds that control was stopped
        mesh.reaper.tick()
    assert mesh.states["queued"] == 8


BROKEN = {
    "lease_matches_state": "UPDATE tasks SET lease_id = NULL WHERE task_id = 'r'",
    "lease_has_attempt": "UPDATE attempts SET slot = 'cpu9'",
    "open_attempt_has_task": "UPDATE tasks SET lease_id = 'x' WHERE task_id = 'r'",
    "fence_is_an_ended_attempt": "UPDATE tasks SET fence = 'x' WHERE task_id = 'q'",
    "one_success": "UPDATE attempts SET state = 'failed' WHERE state = 'succeeded'",
    "end_has_time": "UPDATE tasks SET finished_at = NULL",
    "attempts_counted": "UPDATE tasks SET attempts = 7 WHERE task_id = 'd'",
    "unmet_counted": "UPDATE tasks SET unmet = 2 WHERE task_id = 'w'",
    "release_is_of_an_end": "INSERT INTO releases VALUES ('q', '')",
    "stored_is_counted": "UPDATE stored SET bytes = 1",
    "kept_is_counted": "UPDATE kept SET bytes = bytes + 1",
    "kept_from_the_end": "UPDATE tasks SET kept_bytes = 1 WHERE task_id = 'q'",
    "lane_exists": "DELETE FROM lanes",
    "node_exists": "DELETE FROM nodes",
    "edge_has_ends": "UPDATE dependencies SET needs = 'nobody'",
    "events_of_a_task": "UPDATE events SET task_id = 'nobody' WHERE task_id = 'q'",
    "artifacts_of_a_task": "UPDATE artifacts SET task_id = 'nobody'",
    "attempts_of_a_task": "UPDATE attempts SET task_id = 'nobody' WHERE task_id = 'd'",
    "task_blobs_of_a_task": "UPDATE task_blobs SET task_id = 'nobody'",
    "input_is_here": "DELETE FROM blobs",
    "history_is_legal": "UPDATE events SET to_state = 'leased' WHERE to_state = 'running'",
    "counters_match": "UPDATE tasks SET interruptions = 3 WHERE task_id = 'd'",
    "blob_is_here": "UPDATE artifacts SET size = 1",
    "spec_of_a_task": "UPDATE tasks SET spec_bytes = 1 WHERE task_id = 'd'",
    "result_of_a_task": "INSERT INTO results VALUES (77, '1')",
    "json_is_valid": "UPDATE lanes SET requirements = '{'",
    "ledger_has_a_name": "DELETE FROM meta",
    "failure_has_error": "UPDATE tasks SET state = 'failed' WHERE task_id = 'd'",
    "result_has_digest": "UPDATE attempts SET result_sha256 = NULL",
    "numbers_go_on": "UPDATE sqlite_sequence SET seq = 1",
    "priority_as_submitted": "UPDATE tasks SET priority = 3",
    "inputs_recorded": "DELETE FROM task_blobs",
    "labels_recorded": "DELETE FROM labels",
    "lane_is_its_own": "UPDATE tasks SET submitter = 'bob'",
    "schema_is_ours": "DROP INDEX tasks_key",
    "sqlite_integrity": "DROP TABLE dependencies",
    "one_live_attempt": "UPDATE attempts SET ended_at = NULL, task_id = 'r', attempt = 2"
    " WHERE task_id = 'd'",
}


def populate(api: Api) -> None:
    """`d` is done, `r` runs, `q` is queued, `w` waits."""
    sha = api.blob(b"input")
    api.join("n1")
    finish(api, {**ECHO, "task_id": "d", "inputs": {"f": {"sha256": sha}}})
    api.submit({**ECHO, "task_id": "r", "labels": {"run": "a=b", "empty": ""}})
    api.take("n1")
    api.submit({**ECHO, "task_id": "q"}, {**ECHO, "task_id": "w", "depends_on": ["r"]})


def test_check_finds_every_kind_of_violation(api: Api, mesh: Mesh, tmp_path: Path) -> None:
    populate(api)
    assert rules(mesh.data, deep=True) == []
    for rule, sql in BROKEN.items():
        copy = tmp_path / rule
        shutil.copytree(mesh.data / "blobs", copy / "blobs")
        with closing(apsw.Connection(str(mesh.data / "ledger.db"))) as db:
            db.execute("VACUUM INTO ?", (str(copy / "ledger.db"),))
        with closing(apsw.Connection(str(copy / "ledger.db"))) as db:
            db.execute(sql)
        assert rule in rules(copy), rule


def test_m13_a_blob_cut_short_on_the_disk_is_healed_by_its_next_upload(
    api: Api, mesh: Mesh
) -> None:
    path = mesh.blobs.path(api.blob(b"all of it"))
    path.write_bytes(b"all")
    api.blob(b"all of it")
    assert path.read_bytes() == b"all of it"


def test_m14_a_file_that_is_no_log_does_not_spoil_a_backup(
    api: Api, mesh: Mesh, tmp_path: Path
) -> None:
    (mesh.data / "logs" / "notes of mine.log").write_text("hi")
    backup.backup(mesh.data, tmp_path / "b.tar")
    assert backup.restore(tmp_path / "b.tar", tmp_path / "fresh", force=False) == []


def test_check_finds_missing_and_changed_bytes(api: Api, mesh: Mesh) -> None:
    populate(api)
    paths = [path for path in (mesh.data / "blobs").rglob("*") if path.is_file()]
    text = paths[0].read_bytes()
    paths[0].write_bytes(text[::-1])
    assert (rules(mesh.data), rules(mesh.data, deep=True)) == ([], ["blob_is_whole"])
    paths[0].unlink()
    assert rules(mesh.data) == ["blob_is_here"]


def test_a_backup_of_a_running_control_restores_with_everything_in_it(
    api: Api, mesh: Mesh, clock: ManualClock, config: ControlConfig, redis_server: Server,
    tmp_path: Path,
) -> None:  # fmt: skip
    populate(api)
    old = mesh.ledger.incarnation
    archive, fresh = tmp_path / "b.tar", tmp_path / "fresh"
    backup.backup(mesh.data, archive)
    assert stat.S_IMODE(archive.stat().st_mode) == 0o600
    finish(api, {**ECHO, "task_id": "later", "priority": 9})
    assert backup.restore(archive, fresh, force=False) == []
    with pytest.raises(ConfigError, match="not empty"):
        backup.restore(archive, fresh, force=False)
    with pytest.raises(LedgerLocked):
        backup.restore(archive, mesh.data, force=True)
    mesh.close()
    again = build(fresh, redis_server, clock, config)
    try:
        assert again.ledger.incarnation != old
        assert again.states == {"succeeded": 1, "running": 1, "queued": 1, "waiting": 1}
        assert again.auth.public_keys == mesh.auth.public_keys
        for _ in range(130):
            clock.advance(1)
            again.reaper.tick()
        assert again.states["queued"] == 2
        assert rules(fresh, deep=True) == []
        assert (fresh / "logs" / "d.1.log").read_bytes() == b"hi"
    finally:
        again.close()
    assert backup.restore(archive, fresh, force=True) == []
    assert len(list(fresh.glob("before-*/ledger.db"))) == 1


def test_after_a_restore_numbers_and_revocations_go_on(
    api: Api, mesh: Mesh, clock: ManualClock, config: ControlConfig, redis_server: Server,
    tmp_path: Path, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    populate(api)
    api.enrol("thief")
    archive, data = tmp_path / "b.tar", tmp_path / "fresh"
    backup.backup(mesh.data, archive)
    last = rows(mesh, "SELECT max(seq) AS seq FROM events")[0]["seq"]
    api.enrol("late")
    for node in ("thief", "late"):
        assert api.rae("POST", f"/nodes/{node}/revoke", {}, who="root").status_code == 200
    assert api.rae("POST", "/tokens/bob/revoke", {}, who="root").status_code == 200
    mesh.close()
    for folder, said in ((data, "anew"), (mesh.data, "stays")):
        assert backup.restore(archive, folder, force=True, nodes_are_dead=True) == []
        assert said in capsys.readouterr().out.replace("is revoked", "stays")
    for _ in range(2):  # a restart changes nothing of it
        again = build(mesh.data, redis_server, clock, config)
        api.client = create_app(again).test_client()
        assert api.register("n1").json["incarnation"] == again.ledger.incarnation
        assert rows(again, "SELECT max(seq) AS seq FROM events")[0]["seq"] > last + 999_999
        assert {n.node_id: (n.epoch, n.revoked) for n in again.nodes if n.revoked} == {
            "thief": (2, True),
            "late": (2, True),
        }
        assert api.rae("GET", "/tasks", who="bob").status_code == 401
        assert rules(mesh.data) == []
        again.close()


def test_a_damaged_backup_restores_nothing(api: Api, mesh: Mesh, tmp_path: Path) -> None:
    populate(api)
    archive, fresh = tmp_path / "b.tar", tmp_path / "fresh"
    backup.backup(mesh.data, archive)
    whole = archive.read_bytes()
    text = b"hi"
    assert whole.count(text + bytes(510)) == 1
    changed = whole.replace(text + bytes(510), b"ho" + bytes(510))
    for broken in (
        changed,
        whole.replace(b"made", b"evil"),
        whole[: whole.rindex(backup.SUMS.encode())],
        whole[: len(whole) // 2],
        b"nonsense" * 1000,
        b"",
    ):
        archive.write_bytes(broken)
        with pytest.raises(BackupDamaged):
            backup.restore(archive, fresh, force=False)
    assert [path.name for path in fresh.iterdir()] == ["ledger.lock"]


@pytest.fixture
def old_ledger(tmp_path: Path) -> Path:
    """A folder with a ledger of schema 1 and its blobs."""
    folder = tmp_path / "v1"
    for text in (b"hello", b"world"):
        name = hashlib.sha256(text).hexdigest()
        path = folder / "blobs" / name[:2] / name
        path.parent.mkdir(parents=True)
        path.write_bytes(text)
    with closing(apsw.Connection(str(folder / "ledger.db"))) as db:
        db.execute(V1.read_text())
    return folder


def test_a_ledger_of_schema_1_is_migrated_with_a_copy_beside_it(
    old_ledger: Path, redis_server: Server, clock: ManualClock, config: ControlConfig
) -> None:
    assert rules(old_ledger) == ["schema_is_current"]
    mesh = build(old_ledger, redis_server, clock, config)
    try:
        assert rules(old_ledger, deep=True) == []
        wanted = "waiting queued leased running failed cancelled expired"
        assert mesh.states == {"succeeded": 2, **dict.fromkeys(wanted.split(), 1)}
        # A second machine may have registered since: no machine's word about these counts.
        open_now = "SELECT DISTINCT machine FROM attempts WHERE ended_at IS NULL"
        assert rows(mesh, open_now) == [{"machine": None}]
        reads = rows(mesh, "SELECT task_id FROM task_blobs ORDER BY task_id")
        assert [row["task_id"] for row in reads] == ["queued", "succeeded"]
        # What was submitted and returned stands apart from the tasks' rows since schema 5.
        assert len(rows(mesh, "SELECT 1 FROM specs")) == 9
        client = create_app(mesh).test_client()
        headers = {"Authorization": "Bearer token-of-root"}
        old = client.get("/tasks/succeeded", headers=headers).json
        assert (old["result"], old["spec"]["kind"]) == ({"n": 1}, "cli")
    finally:
        mesh.close()
    with closing(apsw.Connection(str(old_ledger / "ledger.db.v1.bak"))) as db:
        assert db.pragma("user_version") == 1
        assert len(fetch(db, "SELECT 1 FROM tasks")) == 9


def test_a_ledger_of_a_newer_version_is_refused(tmp_path: Path, clock: ManualClock) -> None:
    Ledger(tmp_path / "ledger.db", clock).close()
    with closing(apsw.Connection(str(tmp_path / "ledger.db"))) as db:
        db.pragma("user_version", 99)
    with pytest.raises(LedgerTooNew, match="run the newer version"):
        Ledger(tmp_path / "ledger.db", clock)
    with pytest.raises(LedgerTooNew):
        rules(tmp_path)
