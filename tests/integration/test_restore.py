"""A restore under working nodes: what runs for the old ledger is stopped, and runs again."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path

import requests

from rae_control.maintenance.backup import check_folder
from tests.harness import MakeMesh
from tests.integration.stamps import Stamps, started
from tests.until import until
from tools.devmesh import DevMesh


def rae_control(*words: str) -> None:
    command = [sys.executable, "-m", "rae_control.cli.rae_control", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_after_a_restore_nodes_stop_old_work_and_the_tasks_run_again(
    make_mesh: MakeMesh, tmp_path: Path
) -> None:
    stamps, archive = Stamps(tmp_path), tmp_path / "backup.tar"
    mesh = make_mesh("n1", node={"task_paths": [str(stamps.tasks)]})
    task = mesh.rae.submit([stamps.body(60)])[0].task_id
    started(stamps, task)
    rae_control("backup", str(archive), "--data", str(mesh.data))
    lost = mesh.rae.submit([{"kind": "never"}])[0].task_id
    restored(mesh, archive)
    started(stamps, task, 2)
    stamps.ran_apart(task)
    view = mesh.rae.task(task)
    assert [attempt.state for attempt in view.history] == ["interrupted", "running"]
    assert lost not in {view.task_id for view in mesh.rae.tasks().tasks}
    mesh.rae.cancel(task)
    assert check_folder(mesh.data, deep=True) == []


def restored(mesh: DevMesh, archive: Path, *options: str) -> None:
    mesh.control.stop()
    rae_control("restore", str(archive), "--data", str(mesh.data), "--force", *options)
    mesh.start_control()


def held(mesh: DevMesh) -> bool:
    return "held" in requests.get(f"{mesh.url}/readyz", timeout=5).json()


def test_a_task_submitted_after_the_backup_does_not_run_beside_its_first_attempt(
    make_mesh: MakeMesh, tmp_path: Path
) -> None:
    stamps, archive = Stamps(tmp_path), tmp_path / "backup.tar"
    mesh = make_mesh("n1", "n2", node={"task_paths": [str(stamps.tasks)], "max_concurrent_cpu": 1})
    rae_control("backup", str(archive), "--data", str(mesh.data))
    body = stamps.body(2, task_id="again", lease_ttl_s=60)
    first = {**stamps.body(60, task_id="again", lease_ttl_s=60), "requirements": {"nodes": ["n1"]}}
    mesh.rae.submit([first])
    started(stamps, "again")
    # Its agent is stopped, so it cannot know; its supervisor lets the task live for a minute.
    mesh.nodes["n1"].signal(signal.SIGSTOP)
    restored(mesh, archive)
    mesh.rae.submit([body])
    assert held(mesh)
    assert "or until these nodes have reported: n1" in mesh.rae.task("again").why[0]
    before = len(stamps.lines("again"))
    until(lambda: len(stamps.lines("again")) > before + 100, "the first attempt goes on", 20)
    assert mesh.rae.task("again").attempts == 0
    mesh.nodes["n1"].signal(signal.SIGCONT)
    view = mesh.rae.wait("again", 60)
    assert (view.state.value, view.attempts) == ("succeeded", 1)
    assert not held(mesh)
    stamps.ran_apart("again")


def test_an_operator_who_knows_that_all_nodes_are_off_need_not_wait(
    make_mesh: MakeMesh, tmp_path: Path
) -> None:
    stamps, archive = Stamps(tmp_path), tmp_path / "backup.tar"
    mesh = make_mesh("n1", node={"task_paths": [str(stamps.tasks)]})
    rae_control("backup", str(archive), "--data", str(mesh.data))
    mesh.nodes["n1"].kill()
    restored(mesh, archive)
    mesh.rae.submit([stamps.body(0.1, task_id="t")])
    assert held(mesh)
    mesh.control.stop()
    rae_control("restore", "--nodes-are-dead", "--data", str(mesh.data))
    mesh.start_control()
    assert not held(mesh)
    mesh.add_node("n2", {"task_paths": [str(stamps.tasks)]})
    assert mesh.rae.wait("t", 60).state.value == "succeeded"
