"""What enable-node prints of `rae-node detector status --json`."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROLE = Path(__file__).resolve().parents[3] / "roles" / "node"
PROVEN = {
    "seat": "seat0",
    "user": "carol",
    "proven": True,
    "how": "unlocked with input",
    "why": "",
    "next": "",
}
UNPROVEN = {
    "seat": "seat1", "user": "alice", "proven": False, "how": "",
    "why": "no login with input was seen yet",
    "next": "log in or unlock once at that desk, or run: sudo rae-node detector test",
}  # fmt: skip
ANSWERS: dict[str, dict[str, Any]] = {
    "both": {"rc": 0, "stdout": json.dumps({"blind": "", "seats": [PROVEN, UNPROVEN]})},
    "away": {"rc": 0, "stdout": json.dumps({"blind": "", "seats": [{**UNPROVEN, "user": ""}]})},
    "headless": {"rc": 0, "stdout": json.dumps({"blind": "", "seats": []})},
    "blind": {"rc": 0, "stdout": json.dumps({"blind": "rae-input hangs", "seats": []})},
    "unreadable": {"rc": 1, "stdout": "", "stderr": "config.yaml is missing\n"},
    "silent": {"rc": 2, "stdout": "", "stderr": ""},
}


def leaves(tasks: list[dict[str, Any]]) -> Iterator[dict[str, Any]]:
    """Every task, those within blocks, too."""
    for task in tasks:
        yield task
        for part in ("block", "rescue", "always"):
            yield from leaves(task.get(part, []))


@pytest.fixture(scope="module")
def words(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[str]]:
    """What Ansible prints in each case, line by line: the role's own tasks, with that answer."""
    folder = tmp_path_factory.mktemp("words")
    known = yaml.safe_load((ROLE / "tasks" / "enable.yml").read_text("utf-8"))
    tasks = [task for task in known if "_node_proof_said" in json.dumps(task)]
    assert len(tasks) == 2
    (at_once,) = (
        task for task in leaves(known) if "_node_in_use" in str(task.get("ansible.builtin.assert"))
    )
    tasks.append({**at_once, "ignore_errors": True})
    refused = {"ansible.builtin.debug": {"msg": "refused: {{ _node_proof_lacks }}"}}
    plays = [
        {"name": name, "hosts": "all", "gather_facts": False, "tasks": [*tasks, refused],
         "vars_files": [str(ROLE / "vars" / "main.yml")], "vars": {"_node_proof": answer}}
        for name, answer in ANSWERS.items()
    ]  # fmt: skip
    (folder / "play.yml").write_text(json.dumps(plays), encoding="utf-8")
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "--inventory=node1,",
         "--connection=local", folder / "play.yml"],
        env={**os.environ, "ANSIBLE_HOME": str(folder), "LC_ALL": "C.UTF-8",
             "ANSIBLE_CALLBACK_RESULT_FORMAT": "json"},
        cwd=folder, text=True, capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    parts = done.stdout.split("PLAY [")[1:]
    return {part.partition("]")[0]: part.splitlines() for part in parts}


def has(lines: list[str], said: str) -> bool:
    return any(said in line for line in lines)


def test_each_seat_is_named_with_what_proved_it_or_what_will(words: dict[str, list[str]]) -> None:
    said = words["both"]
    assert has(said, "node1: input on seat0 is proven to be seen: unlocked with input")
    assert has(said, "input on seat1 is not proven to be seen: no login with input was seen yet")
    assert has(said, "however long it was not touched; next: log in or unlock once at that desk")
    assert not has(said, "is not seen:")


def test_a_refusal_names_the_seats_whose_sessions_count_without_end(
    words: dict[str, list[str]],
) -> None:
    assert has(words["both"], "refused: input on seat1 is not proven to be seen")
    assert has(words["both"], "sudo systemctl start rae-input && sudo rae-node detector test")
    assert has(words["headless"], "refused: input is proven to be seen at every seat, or there is")


def test_who_is_logged_in_where_input_is_not_proven_is_named_before_the_node_is_lent(
    words: dict[str, list[str]],
) -> None:
    assert has(
        words["both"], "node1 is not lent: alice is logged in there, and input on seat1 is not"
    )
    assert not has(words["both"], "carol")
    for case in ("away", "headless", "silent"):
        assert not has(words[case], "is not lent")


def test_a_node_without_a_seat_needs_no_word(words: dict[str, list[str]]) -> None:
    assert not has(words["headless"], "node1: input")


@pytest.mark.parametrize(
    ("case", "why"),
    [
        ("blind", "rae-input hangs"),
        ("unreadable", "config.yaml is missing"),
        ("silent", "rae-node detector status failed"),
    ],
)
def test_a_blind_detector_is_named_with_its_cause_and_fails_nothing(
    words: dict[str, list[str]], case: str, why: str
) -> None:
    assert has(words[case], f"node1: input is not seen: {why}")
    assert has(words[case], "next: rae-node doctor on the node")
