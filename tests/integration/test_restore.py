"""A restore under working nodes: what runs for the old ledger is stopped, and runs again."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from rae_control.backup import check_folder
from tests.conftest import MakeMesh
from tools.devmesh import install_stamp, wait_until


def rae_control(*words: str) -> None:
    command = [sys.executable, "-m", "rae_control.serve", *words]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr


def test_after_a_restore_nodes_stop_old_work_and_the_tasks_run_again(
    make_mesh: MakeMesh, tmp_path: Path
) -> None:
    tasks = install_stamp(tmp_path)
    mesh = make_mesh("n1", node={"task_paths": [str(tasks)]})
    stamps = tmp_path / "stamps"
    params = {"task": "stamp", "params": {"stamps": str(stamps), "seconds": 10}}
    task = mesh.rae.submit([{"kind": "python", "params": params}])[0].task_id
    wait_until(lambda: mesh.rae.task(task).state.value == "running", 20, "it runs")
    archive = tmp_path / "backup.tar"
    rae_control("backup", str(archive), "--data", str(mesh.data))
    lost = mesh.rae.submit([{"kind": "never"}])[0].task_id
    mesh.control.stop()
    rae_control("restore", str(archive), "--data", str(mesh.data), "--force")
    mesh.start_control()
    view = mesh.rae.wait(task, 60)
    assert (view.state.value, view.attempts) == ("succeeded", 2)
    assert [attempt.state for attempt in view.history] == ["interrupted", "succeeded"]
    assert lost not in {view.task_id for view in mesh.rae.tasks().tasks}
    assert check_folder(mesh.data, deep=True) == []
