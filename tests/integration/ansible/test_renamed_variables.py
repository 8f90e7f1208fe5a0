"""An inventory of an earlier release: what it sets by a former name is refused, not ignored."""

from __future__ import annotations

from pathlib import Path

import yaml

from tests.integration.ansible.role import ROLE, play

PREFLIGHT = ROLE.parent / "common" / "tasks" / "preflight.yml"
MESH = ROLE.parent / "mesh" / "vars" / "main.yml"


def test_a_variable_by_its_former_name_is_refused_with_its_new_one(tmp_path: Path) -> None:
    (check,) = [
        task
        for task in yaml.safe_load(PREFLIGHT.read_text("utf-8"))
        if task["name"] == "Assert that no variable has a former name"
    ]
    hosts = {"old": {"control_port": 8081, "users_task_name": "worker"}, "new": {}}
    tasks = [{"ansible.builtin.include_vars": str(MESH)}, check]
    done = play(tmp_path, hosts, tasks, {})
    assert done.code != 0
    assert "Rename them: users_task_name to mesh_task_user, control_port to" in done.words
    assert "mesh_control_port." in done.words
    assert (done.count("old", "failed"), done.count("new", "failed")) == (1, 0)
