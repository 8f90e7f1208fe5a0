"""The audit after chaos finds what must not happen."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from rae_protocol import models
from tools.scenarios.audit import Record, lives_of, result_problems, task_problems
from tools.stamp import stamps_in

Stamp = tuple[str, int, float]


def stamps(folder: Path, *given: Stamp) -> Path:
    file = folder / "stamps"
    lines = [json.dumps({"task": t, "attempt": n, "at": at, "what": "alive"}) for t, n, at in given]
    file.write_text("\n".join(lines) + "\n")
    return file


def view(state: str, **more: Any) -> models.TaskView:
    history = more.pop("history", [("succeeded", 1)])
    body = {
        "task_id": "t1", "state": state, "kind": "python", "submitter": "s", "priority": 5,
        "attempts": len(history), "failures": 0, "interruptions": 0,
        "created_at": "2026-01-01T00:00:00Z", "updated_at": "2026-01-01T00:00:00Z",
        "history": [
            {"attempt": n, "node_id": "n1", "slot": "cpu0", "state": how,
             "claimed_at": "2026-01-01T00:00:00Z"}
            for how, n in history
        ],
        **more,
    }  # fmt: skip
    return models.TaskView.model_validate_json(json.dumps(body))


def test_attempts_one_after_the_other_are_fine(tmp_path: Path) -> None:
    file = stamps(tmp_path, ("a", 1, 1.0), ("a", 1, 2.0), ("a", 2, 2.5), ("b", 1, 1.5))
    assert lives_of(file) == (3, [])


@pytest.mark.parametrize("second", [1.5, 2.0])
def test_two_attempts_alive_at_once_are_found(tmp_path: Path, second: float) -> None:
    file = stamps(tmp_path, ("a", 1, 1.0), ("a", 2, second), ("a", 1, 2.0), ("a", 2, 3.0))
    count, found = lives_of(file)
    assert count == 2
    assert found == ["a: attempts 1 and 2 lived at the same time"]


def test_no_stamps_at_all_are_no_lives(tmp_path: Path) -> None:
    assert lives_of(tmp_path / "nothing") == (0, [])


@pytest.mark.parametrize(
    ("task", "word"),
    [
        (view("queued"), "has not ended"),
        (view("failed", reason="E_EXIT"), "failed with E_EXIT"),
        (view("succeeded", result={"attempt": 2}), "result"),
        (view("succeeded", result=None), "result"),
        (
            view("succeeded", result={"attempt": 1}, history=[("succeeded", 1), ("succeeded", 2)]),
            "result",
        ),
    ],
)
def test_a_task_that_did_not_end_well_is_found(task: models.TaskView, word: str) -> None:
    assert word in task_problems(task)[0]


@pytest.mark.parametrize(
    "task",
    [
        view("succeeded", result={"attempt": 2}, history=[("interrupted", 1), ("succeeded", 2)]),
        view("failed", reason="too_many_interruptions"),
        view("failed", reason="dependency_failed"),
    ],
)
def test_a_task_that_ended_as_it_may_is_fine(task: models.TaskView) -> None:
    assert task_problems(task) == []


def test_an_accepted_result_that_the_ledger_lacks_is_found() -> None:
    record = Record(delivered={("t1", 1), ("gone", 1)})
    tasks = {"t1": view("succeeded", history=[("interrupted", 1)])}
    assert len(result_problems(tasks, set(), record)) == 2


def test_a_refused_result_must_have_changed_nothing_and_be_in_the_history() -> None:
    record = Record(refused={("t1", 1)})
    good = {"t1": view("succeeded", history=[("interrupted", 1), ("succeeded", 2)])}
    assert result_problems(good, {("t1", 1)}, record) == []
    assert len(result_problems(good, set(), record)) == 1
    assert len(result_problems({"t1": view("succeeded")}, {("t1", 1)}, record)) == 1


def test_a_stamp_that_is_torn_spoils_no_other(tmp_path: Path) -> None:
    file = tmp_path / "stamps"
    file.write_text('\n{"at": 1}\n\n{"at":\n{"at": 2}\n\n{"at": 3')
    assert [stamp["at"] for stamp in stamps_in(file)] == [1, 2]
    assert stamps_in(tmp_path / "none") == []
