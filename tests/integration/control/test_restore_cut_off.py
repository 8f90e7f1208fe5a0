"""C4: a restore that is killed anywhere leaves the old past, or a folder that says so."""

from __future__ import annotations

import subprocess
import sys
from contextlib import closing
from pathlib import Path

import apsw
import pytest

from rae_control.auth.root_keys import load_roots
from rae_control.cli.rae_control import main
from rae_control.errors import BackupDamaged, RestoreUnfinished
from rae_control.ledger.sqlite import RESTORING, Ledger
from rae_control.maintenance import backup
from tests.integration.control.harness import ManualClock

# Kills itself before the n-th file is moved or removed.
KILLED = """
import os, sys
left = int(sys.argv[1])
def hook(event, args):
    global left
    if event in ("os.rename", "os.remove"):
        left -= 1
        if left == 0:
            os.kill(os.getpid(), 9)
sys.addaudithook(hook)
from rae_control.cli.rae_control import main
sys.exit(main(sys.argv[2:]))
"""


def ledger_of(data: Path, clock: ManualClock, name: str) -> None:
    load_roots(data)
    (data / "logs").mkdir()
    (data / "logs" / f"{name}.1.log").write_text(name)
    Ledger(data / "ledger.db", clock).close()
    # Left as a kill leaves it: part of the ledger is in its log.
    db = apsw.Connection(str(data / "ledger.db"))
    db.execute("INSERT INTO meta VALUES ('name', ?)", (name,))
    for end in ("", "-wal", "-shm"):
        path = data / f"ledger.db{end}"
        path.with_name(f"{path.name}.kept").write_bytes(path.read_bytes())
    db.close()
    for path in data.glob("*.kept"):
        path.replace(path.with_suffix(""))


def name_in(data: Path) -> str:
    with closing(apsw.Connection(str(data / "ledger.db"))) as db:
        return str(db.execute("SELECT value FROM meta WHERE key = 'name'").get)


@pytest.fixture
def archive(tmp_path: Path, clock: ManualClock) -> Path:
    source = tmp_path / "source"
    source.mkdir()
    ledger_of(source, clock, "new")
    (source / "root.previous.key").write_text("00" * 32)
    backup.backup(source, tmp_path / "b.tar")
    return tmp_path / "b.tar"


def test_a_killed_restore_is_refused_by_serve_and_goes_on_when_it_is_run_again(
    tmp_path: Path, clock: ManualClock, archive: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    marked = 0
    for kill_at in range(1, 40, 3):
        data = tmp_path / f"data{kill_at}"
        data.mkdir()
        ledger_of(data, clock, "old")
        words = ["restore", str(archive), "--data", str(data), "--force"]
        command = [sys.executable, "-c", KILLED, str(kill_at), *words]
        ended = subprocess.run(command, capture_output=True, timeout=60, check=False).returncode
        if ended == 0:
            break
        assert ended == -9
        if (data / RESTORING).exists():
            marked += 1
            with pytest.raises(RestoreUnfinished, match="run the same"):
                Ledger(data / "ledger.db", clock)
            assert main(["serve", "--dev", "--data", str(data), "--port", "0"]) == 11
            assert "--force" in capsys.readouterr().err
        assert main(words) == 0
        assert name_in(data) == "new"
        assert [path.name for path in (data / "logs").iterdir()] == ["new.1.log"]
        asides = list(data.glob("before-*"))
        assert [name_in(aside) for aside in asides] == ["old"]
        assert [path.name for path in (asides[0] / "logs").iterdir()] == ["old.1.log"]
        assert not (asides[0] / "root.previous.key").exists()
        assert not list(data.glob("restore*"))
    assert ended == 0
    assert marked > 3


def test_a_restore_whose_ledger_cannot_be_renewed_is_none(
    tmp_path: Path, clock: ManualClock
) -> None:
    load_roots(tmp_path)
    Ledger(tmp_path / "ledger.db", clock).close()
    with closing(apsw.Connection(str(tmp_path / "ledger.db"))) as db:
        db.execute("CREATE TRIGGER no BEFORE INSERT ON meta BEGIN SELECT RAISE(ABORT, 'no'); END")
    backup.backup(tmp_path, tmp_path / "b.tar")
    with pytest.raises(BackupDamaged, match="not ours"):
        backup.restore(tmp_path / "b.tar", tmp_path / "fresh", force=False)
    assert not (tmp_path / "fresh" / "ledger.db").exists()
