"""`rae-control doctor` names each thing that is wrong, and the way out."""

from __future__ import annotations

import json
import socket
import subprocess
import sys
import time
from contextlib import closing
from pathlib import Path

import apsw
import pytest
import redis

from rae_control.auth.root_keys import load_roots
from rae_control.config import ControlConfig
from rae_control.errors import LedgerLocked
from rae_control.ledger.sqlite import Ledger
from rae_control.maintenance.doctor import Finding, examine
from tests.integration.control.harness import ManualClock, Server
from tools.devmesh import DevMesh


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A data folder as a stopped control leaves it."""
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    Ledger(data / "ledger.db", ManualClock()).close()
    load_roots(data)
    return data


def wrong(data: Path, free_port: int, **settings: float) -> dict[str, Finding]:
    config = ControlConfig.model_validate({"low_water_bytes": 1, **settings})
    findings = list(examine(data, config, host="127.0.0.1", port=free_port, polls=10))
    assert all(item.fix for item in findings if not item.ok)
    return {item.name: item for item in findings if not item.ok}


@pytest.fixture
def port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_a_sound_folder_has_nothing_wrong(folder: Path, port: int) -> None:
    assert wrong(folder, port) == {}


def test_files_of_a_wrong_kind_or_content_are_named(folder: Path, port: int) -> None:
    (folder / "blobs").write_text("")
    (folder / "files.lock").mkdir()
    (folder / "root.key").write_text("no key")
    assert set(wrong(folder, port)) == {"blobs", "files.lock", "root keys"}


@pytest.mark.parametrize("text", ["70000", "-1"])
def test_a_port_out_of_range_is_refused(folder: Path, text: str) -> None:
    done = verb(folder, "doctor", f"--port={text}")
    assert (done.returncode, "from 0 to 65535" in done.stderr) == (2, True)


def test_each_thing_that_is_wrong_is_named_with_its_fix(folder: Path, port: int) -> None:
    (folder / "credentials.json").write_text("{}")
    for name in ("root.key", "credentials.json"):  # whatever the umask
        (folder / name).chmod(0o644)
    folder.chmod(0o777)
    with closing(apsw.Connection(str(folder / "ledger.db"))) as db:
        db.pragma("user_version", 99)
        db.execute(
            "INSERT INTO events (at, reason) VALUES (?, 'from the future')", (time.time() + 900,)
        )
    found = wrong(folder, port, low_water_bytes=2**60)
    assert set(found) == {"root.key", "credentials.json", "mode", "ledger", "clock", "disk"}
    assert "chmod 0600" in str(found["root.key"])
    (folder / "root.key").unlink()
    assert "missing" in wrong(folder, port)["root.key"].what


@pytest.mark.parametrize(
    ("host", "ok"),
    [("127.0.0.1", True), ("100.101.102.103", True), ("fd7a:115c:a1e0::1", True), ("::1", True),
     ("0.0.0.0", False), ("192.168.1.5", False), ("8.8.8.8", False), ("control", False)],
)  # fmt: skip
def test_only_tailscale_and_loopback_addresses_are_fine(
    tmp_path: Path, host: str, ok: bool
) -> None:
    """Contract: A2."""
    findings = examine(tmp_path / "none", ControlConfig(), host=host, port=1, polls=1)
    assert {item.name: item.ok for item in findings}["address"] is ok


def test_a_redis_that_would_lose_tasks_is_named(
    folder: Path, port: int, redis_server: Server
) -> None:
    (folder / "run").mkdir()
    (folder / "run" / "redis.url").write_text(redis_server.url)
    assert wrong(folder, port) == {}
    with closing(redis.Redis.from_url(redis_server.url)) as client:
        client.config_set("maxmemory-policy", "allkeys-lru")
        client.config_set("appendonly", "no")
        try:
            assert set(wrong(folder, port)) == {"redis policy", "redis file"}
        finally:
            client.config_set("maxmemory-policy", "noeviction")
            client.config_set("appendonly", "yes")


def verb(data: Path, *words: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rae_control.cli.rae_control", *words, "--data", str(data)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def test_the_verbs_work_beside_a_running_control(control: DevMesh, tmp_path: Path) -> None:
    task = control.rae.submit([{"kind": "never"}])[0].task_id
    control.rae.cancel(task)  # others use this control, too
    done = verb(control.data, "doctor", "--json", "--polls", "10")
    findings = json.loads(done.stdout)["findings"]
    assert [item for item in findings if not item["ok"]] == []
    assert done.returncode == 0
    assert any(str(control.pid("worker")) in item["what"] for item in findings)
    done = verb(control.data, "check", "--deep")
    assert (done.returncode, done.stdout.strip()) == (0, "all is well")
    archive, fresh = tmp_path / "b.tar", tmp_path / "fresh"
    assert verb(control.data, "backup", str(archive)).returncode == 0
    done = verb(control.data, "restore", str(archive), "--force")
    assert done.returncode == LedgerLocked.rc
    assert "is served by process" in done.stderr
    assert verb(fresh, "restore", str(archive)).returncode == 0
    assert verb(fresh, "check").returncode == 0
    done = verb(tmp_path / "nothing", "check")
    assert (done.returncode, "there is no ledger" in done.stderr) == (2, True)
