"""`files/`: what an operator takes as it is."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rae_protocol import models
from tools.devmesh import DevMesh

ROOT = Path(__file__).parents[2]
EXAMPLES = sorted((ROOT / "files" / "submit").glob("*.json"))


@pytest.mark.parametrize("file", EXAMPLES, ids=lambda file: file.stem)
def test_each_example_is_a_submit(file: Path) -> None:
    body = json.loads(file.read_text(encoding="utf-8"))
    models.parse(models.SubmitMany if "tasks" in body else models.TaskSpec, body)


def test_the_examples_of_commands_succeed(mesh: DevMesh) -> None:
    for name in ("checksum", "chain"):
        body = json.loads((ROOT / "files" / "submit" / f"{name}.json").read_text(encoding="utf-8"))
        for task in mesh.rae.submit(body.get("tasks", [body])):
            assert mesh.rae.wait(task.task_id, 60).state.value == "succeeded"


def test_the_policy_of_the_tailnet_is_the_one_of_the_operations_page() -> None:
    page = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
    shown = page.partition("```json")[2].partition("```")[0]
    policy = (ROOT / "files" / "tailnet-policy.json").read_text(encoding="utf-8")
    assert json.loads(shown) == json.loads(policy)
