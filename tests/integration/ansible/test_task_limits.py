"""A task's unit lasts longer than the node lets its tasks run, whatever that is."""

from __future__ import annotations

import configparser
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.integration.ansible.role import ROLE, play

UNITS = ("rae-task@.service", "rae-task-gpu@.service")
CASES: dict[str, tuple[dict[str, Any], int]] = {
    "standard": ({}, 185 * 60),
    "longer": ({"execution": {"task_timeout_minutes": 600}}, 605 * 60),
    "shorter": ({"execution": {"task_timeout_minutes": 0.51}}, 331),
    "other": ({"safety": {"max_cpu_percent": 50}}, 185 * 60),
}


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The drop-ins of hosts that differ in their node_runtime."""
    folder: Path = tmp_path_factory.mktemp("limits")
    defaults = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text("utf-8"))
    tasks = [
        {"ansible.builtin.include_vars": str(ROLE / "vars" / "main.yml")},
        {
            "ansible.builtin.template": {
                "src": str(ROLE / "templates" / "task.conf.j2"),
                "dest": f"{folder}/{{{{ inventory_hostname }}}}.conf",
            }
        },
    ]
    hosts = {name: {**defaults, "node_runtime": runtime} for name, (runtime, _) in CASES.items()}
    done = play(folder / "play", hosts, tasks, {})
    assert done.code == 0, done.text
    return folder


def limit(file: Path) -> str:
    unit = configparser.RawConfigParser(strict=False)
    unit.optionxform = str  # type: ignore[assignment,method-assign]
    unit.read(file, encoding="utf-8")
    return unit["Service"]["RuntimeMaxSec"]


@pytest.mark.parametrize("name", CASES)
def test_a_tasks_unit_lasts_five_minutes_longer_than_task_timeout_minutes(
    written: Path, name: str
) -> None:
    assert int(limit(written / f"{name}.conf")) == CASES[name][1]


def test_both_units_get_that_and_have_the_standards_without_it() -> None:
    steps = yaml.safe_load((ROLE / "tasks" / "configure.yml").read_text("utf-8"))
    (dropins,) = (
        one["vars"]["common_units_templates"]
        for one in steps
        if "common_units_templates" in one.get("vars", {})
    )
    got = {item["path"] for item in dropins if item["template"] == "task.conf.j2"}
    assert got == {f"{unit}.d/rae.conf" for unit in UNITS}
    assert {limit(ROLE / "files" / "units" / unit) for unit in UNITS} == {"185min"}
