"""Which accounts and groups are taken away with the mesh, by the note of what was there before."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from base64 import b64encode
from pathlib import Path
from typing import Any

import pytest

ROLE = Path(__file__).resolve().parents[3] / "roles" / "users"
OURS = ["rae-node", "rae-task", "rae-input", "rae-ollama"]
# As a version wrote it that knew no input detector, on a host that had `games` for its agent.
EARLIER = {"users": ["games"], "groups": ["games"]}
FIRST = {"asked": [*OURS, "rae-owner", "input"], "users": [], "groups": ["input"]}
CASES: dict[str, dict[str, Any]] = {
    "first": {"groups": ["root", "input"]},
    "again": {"groups": ["root", "input", *OURS, "rae-owner"], "users": OURS, "note": FIRST},
    "bare": {"groups": ["root"]},
    "earlier": {"groups": ["root", "input", "games", "rae-task"], "users": ["games", "rae-task"],
                "note": EARLIER, "agent": "games"},
}  # fmt: skip


@pytest.fixture(scope="module")
def notes(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, list[str]]]:
    """The note that the role writes in each case, as Ansible renders it."""
    folder = tmp_path_factory.mktemp("notes")
    tasks: list[dict[str, Any]] = []
    for name, case in CASES.items():
        facts = {
            "cacheable": True,  # where getent's are
            "getent_passwd": {user: [] for user in ["root", *case.get("users", [])]},
            "getent_group": {group: [] for group in case["groups"]},
        }
        known: dict[str, Any] = {"mesh_agent_user": case.get("agent", "rae-node")}
        if "note" in case:
            content = b64encode(json.dumps(case["note"]).encode()).decode()
            known["_users_record"] = {"content": content}
        written = {"content": "{{ _users_to_record | to_json }}", "dest": f"{folder}/{name}.json",
                   "mode": "0600"}  # fmt: skip
        tasks += [{"ansible.builtin.set_fact": facts},
                  {"ansible.builtin.copy": written, "vars": known}]  # fmt: skip
    roles = (ROLE.parent / "mesh", ROLE)
    variables = [str(role / part / "main.yml") for role in roles for part in ("defaults", "vars")]
    play = {"hosts": "all", "gather_facts": False, "vars_files": variables, "tasks": tasks}
    (folder / "play.yml").write_text(json.dumps([play]), encoding="utf-8")
    interpreter = json.dumps({"ansible_python_interpreter": sys.executable})
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "--inventory=localhost,",
         "--connection=local", "--extra-vars", interpreter, folder / "play.yml"],
        env={**os.environ, "ANSIBLE_HOME": str(folder), "LC_ALL": "C.UTF-8"}, cwd=folder, text=True,
        capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: json.loads((folder / f"{name}.json").read_text()) for name in CASES}


def removed(note: dict[str, list[str]]) -> set[str]:
    """The groups that go, as absent.yml reads the note."""
    return set(note["asked"]) - set(note["groups"])


def test_a_group_of_input_devices_that_was_there_is_never_removed(
    notes: dict[str, dict[str, list[str]]],
) -> None:
    assert removed(notes["first"]) == {*OURS, "rae-owner"}
    assert removed(notes["bare"]) == {*OURS, "rae-owner", "input"}


def test_what_the_first_run_made_is_not_taken_for_the_hosts_own_by_the_next(
    notes: dict[str, dict[str, list[str]]],
) -> None:
    assert notes["again"] == FIRST


def test_a_note_of_an_earlier_version_gets_the_names_that_it_did_not_look_for(
    notes: dict[str, dict[str, list[str]]],
) -> None:
    note = notes["earlier"]
    assert removed(note) == {"rae-task", "rae-input", "rae-ollama", "rae-owner"}
    assert note["users"] == ["games"]
