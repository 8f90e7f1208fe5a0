"""Lent nodes work: real tasks and a real model, for somebody on the tailnet."""

from __future__ import annotations

import hashlib
import os
from typing import Any

import pytest

from tests.e2e.site import Site

TASKS, QUESTIONS = 100, 5
LONG = bool(os.environ.get("RAE_TEST_LONG"))


if LONG:

    def test_site_changes_nothing_where_nodes_are_lent_either(lent: Site) -> None:
        """The second runs of site.yml and enable-node.yml are Molecule's, and every run's."""
        said = lent.playbook("site").stdout
        assert said.count("changed=0") == 4, said[-2000:]  # three hosts and localhost


def test_verify_finds_all_well(lent: Site) -> None:
    said = lent.playbook("verify").stdout
    assert "FAIL" not in said and "BLIND" not in said, said


@pytest.fixture(scope="module")
def answers(lent: Site) -> list[dict[str, Any]]:
    """A batch submitted by `operator`, and how each ended."""
    tasks: list[dict[str, Any]] = [
        {"kind": "cli",
         "params": {"command": "sha256sum", "args": ["in.txt"]},
         "inputs": {"in.txt": {"inline": f"number {number}\n"}},
         "artifacts": [{"name": "out.txt", "type": "text/plain"}]}
        for number in range(TASKS)
    ]  # fmt: skip
    tasks += [
        {"kind": "llm", "timeout_s": 120,
         "params": {"prompt": f"{number}?", "role": "tiny", "max_tokens": 8}}
        for number in range(QUESTIONS)
    ]  # fmt: skip
    (told,) = lent.from_operator({"method": "POST", "path": "/tasks", "body": {"tasks": tasks}})
    ids = [task["task_id"] for task in told["tasks"]]
    for task_id in ids:
        lent.until(task_id, "succeeded", 240)
    return lent.from_operator(*({"path": f"/tasks/{task_id}"} for task_id in ids))


def test_a_batch_from_the_operators_machine_succeeds(answers: list[dict[str, Any]]) -> None:
    assert [answer["state"] for answer in answers] == ["succeeded"] * (TASKS + QUESTIONS)
    assert {answer["node_id"] for answer in answers} == {"node1", "node2"}
    assert all(answer["result"] for answer in answers[TASKS:])


def test_artifacts_come_back_over_the_tailnet(lent: Site, answers: list[dict[str, Any]]) -> None:
    texts = lent.from_operator(
        *({"path": f"/tasks/{one['task_id']}/artifacts/out.txt"} for one in answers[:TASKS])
    )
    for number, text in enumerate(texts):
        assert text.split()[0] == hashlib.sha256(f"number {number}\n".encode()).hexdigest()


def test_nothing_of_the_tasks_stays_and_all_ran_in_units(
    lent: Site, answers: list[dict[str, Any]]
) -> None:
    """Contract: B10."""
    shown = lent.raectl("nodes", "list")["nodes"]
    assert {node["isolation"] for node in shown} == {"unit"}
    for name in ("node1", "node2"):
        host = lent.lab.hosts[name]
        units = host.run(["journalctl", "--no-pager", "-o", "cat", "--unit=rae-task@*"]).stdout
        assert units.count("Started") > 10, units[-2000:]
        assert host.run(["find", "/opt/rae-node/workdir", "-mindepth", "1"]).stdout == ""
