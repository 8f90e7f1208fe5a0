"""Backups and checks beside a control: one worker, each chore once, failures to be seen."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
import redis

from rae_control.config import ControlConfig
from rae_control.maintenance.backup import restore
from rae_control.maintenance.chores import enqueue, newest
from rae_control.mesh.mesh import Mesh
from rae_control.queue.rq_queue import CHORES_QUEUE
from tests.integration.control.harness import ECHO, Api, Server, settled, shown, until


class Chores:
    """The verbs over a data folder, and a worker."""

    def __init__(self, data: Path, server: Server) -> None:
        self.data, self.server, self.folder = data, server, data / "backups"
        (data / "run").mkdir()
        (data / "run" / "redis.url").write_text(server.url)
        self.config = data / "control.yaml"
        self.config.write_text(f"backup_dir: {self.folder}\nbackup_keep: 2\n")
        self.log = data / "worker.log"
        self.worker: subprocess.Popen[bytes] | None = None

    def verb(self, *words: str) -> subprocess.CompletedProcess[str]:
        command = [
            sys.executable,
            "-m",
            "rae_control.cli.rae_control",
            *words,
            "--data",
            str(self.data),
        ]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)

    def chore(self, *words: str) -> str:
        done = self.verb("chore", *words, "--config", str(self.config))
        assert done.returncode == 0, done.stderr
        return done.stdout

    def start(self) -> None:
        command = [
            sys.executable,
            "-m",
            "rae_control.cli.rae_control",
            "worker",
            "--data",
            str(self.data),
        ]
        with self.log.open("ab") as log:
            self.worker = subprocess.Popen(command, stdout=log, stderr=log)

    def said(self) -> list[dict[str, object]]:
        return [json.loads(line) for line in self.log.read_text().splitlines()]


@pytest.fixture
def chores(mesh: Mesh, redis_server: Server) -> Iterator[Chores]:
    made = Chores(mesh.data, redis_server)
    yield made
    if made.worker is not None:
        made.worker.terminate()
        made.worker.wait(20)


def test_a_chore_asked_for_twice_is_done_once_and_the_mesh_leaves_it_alone(
    api: Api, mesh: Mesh, redis_server: Server, chores: Chores, tmp_path: Path
) -> None:
    api.join("n1")
    api.submit(ECHO)
    said = chores.chore("backup")
    assert "backup: queued, and no worker runs; start one with `rae-control worker" in said
    assert "already queued or running, and no worker runs" in chores.chore("backup")
    mesh.keeper.unavailable(_error())  # all of the queue is compared
    until(lambda: mesh.keeper.available, "the keeper has Redis")
    settled(mesh)
    assert shown(redis_server)[0][CHORES_QUEUE] == (1, 0)
    chores.start()
    until(lambda: newest(chores.folder), "a copy of the ledger", 20)
    until(
        lambda: "chore_done" in chores.log.read_text(), "the log names the chore that is done", 20
    )
    mesh.keeper.unavailable(_error())
    until(lambda: mesh.keeper.available, "the keeper has Redis")
    settled(mesh)
    workers = shown(redis_server)[1]
    assert {"n1.cpu0", "n1.cpu1"} < set(workers)
    assert [name for name in workers if name.startswith(CHORES_QUEUE)]
    made = newest(chores.folder)
    assert made is not None and made.stat().st_mode & 0o777 == 0o600
    assert restore(made, tmp_path / "again", force=False) == []
    # What is done may be asked for again.
    until(lambda: chores.chore("check") == "check: queued\n", "the check is queued", 5)
    until(lambda: "all is well" in chores.log.read_text(), "the check has found nothing", 20)


def test_a_worker_that_was_killed_is_not_taken_for_one_that_runs(chores: Chores) -> None:
    chores.start()
    until(
        lambda: chores.chore("check") != "" and "no worker" not in chores.chore("check"),
        "a worker for chores",
        20,
    )
    assert chores.worker is not None
    chores.worker.kill()
    chores.worker.wait()
    assert "no worker runs" in chores.chore("backup")


def test_a_backup_replaces_no_file_without_the_option(chores: Chores, tmp_path: Path) -> None:
    file = tmp_path / "mine.raebackup"
    file.write_text("the only one of last year")
    refused = chores.verb("backup", str(file))
    assert refused.returncode == 2
    assert f"{file} is there already" in refused.stderr and "--force" in refused.stderr
    assert file.read_text() == "the only one of last year"
    assert chores.verb("backup", str(file), "--force").returncode == 0
    assert restore(file, tmp_path / "again", force=False) == []


def _error() -> object:
    from rae_control.errors import QueueUnavailable

    return QueueUnavailable("as if it had been away")


def test_backups_are_kept_and_what_a_killed_one_left_goes(chores: Chores) -> None:
    chores.folder.mkdir()
    for day in ("20200101", "20200102"):
        (chores.folder / f"ledger-{day}T000000Z.raebackup").write_text("old")
    (chores.folder / "ledger-x.raebackup.1234.part").write_text("half")
    (chores.folder / "ledger-x.raebackup.5678.part").mkdir()
    assert "files" in chores.chore("backup", "--now")
    left = sorted(path.name for path in chores.folder.iterdir())
    assert left[:2] == ["backup.lock", "ledger-20200102T000000Z.raebackup"] and len(left) == 3
    found = chores.verb("doctor", "--config", str(chores.config)).stdout
    assert "ok   backup: the latest is 0 h old" in found
    os.utime(chores.folder / left[2], (0, time.time() - 60 * 3600))
    found = chores.verb("doctor", "--config", str(chores.config)).stdout
    assert "FAIL backup: the latest is 60 h old" in found


def test_a_failure_is_in_the_log_and_in_rqs_registry(
    chores: Chores, redis_server: Server, mesh: Mesh
) -> None:
    config = ControlConfig(backup_dir="/proc/nowhere")
    assert enqueue(redis_server.url, None, "backup", mesh.data, config)
    chores.start()
    client = redis.Redis.from_url(redis_server.url)
    until(lambda: client.zcard(f"rq:failed:{CHORES_QUEUE}") == 1, "RQ shows the failure", 20)
    client.close()
    (line,) = [line for line in chores.said() if line["event"] == "chore_failed"]
    assert line["level"] == "error"
    assert enqueue(redis_server.url, None, "backup", mesh.data, config), "a failed one is done anew"
    no_folder = chores.verb("chore", "backup", "--now")
    assert no_folder.returncode == 12 and "no backup_dir is set" in no_folder.stderr


def test_a_killed_worker_is_followed_by_another(chores: Chores, redis_server: Server) -> None:
    chores.start()
    until(
        lambda: any(name.startswith(CHORES_QUEUE) for name in shown(redis_server)[1]),
        "rq shows the worker for chores",
        20,
    )
    assert chores.worker is not None
    chores.worker.send_signal(signal.SIGKILL)
    chores.worker.wait()
    chores.start()
    chores.chore("check")
    until(
        lambda: "chore_done" in chores.log.read_text(), "the log names the chore that is done", 20
    )
