"""Tasks of the node role, run by the real ansible-playbook against folders of a test."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

ROLE = Path(__file__).resolve().parents[3] / "roles" / "node"
# What every role depends on: variables of the mesh, and its constants.
MESH = [ROLE.parent / "mesh" / part / "main.yml" for part in ("defaults", "vars")]
# Files are made root's; who is no root has only himself to give them to.
_AS_ROOT = [] if os.getuid() == 0 else ["unshare", "--user", "--map-root-user"]


@dataclass(frozen=True, slots=True)
class Played:
    """How a run of ansible-playbook ended."""

    code: int
    text: str

    @property
    def words(self) -> str:
        """The text in one line: YAML folds long messages, and doubles quotes in some."""
        return re.sub(r"\s+", " ", self.text).replace("''", "'")

    def count(self, host: str, what: str) -> int:
        """A figure of the recap, such as `changed`."""
        found = re.search(rf"^{host} .*\b{what}=(\d+)", self.text, re.MULTILINE)
        assert found is not None, self.text
        return int(found[1])


def play(
    folder: Path, hosts: Mapping[str, Mapping[str, Any]], tasks: Sequence[Mapping[str, Any]],
    instead: Mapping[str, str], *options: str,
) -> Played:  # fmt: skip
    """Run tasks on hosts, which all are this machine.

    `hosts`: variables by name. `instead`: the role's own variables, its paths above all.
    """
    folder.mkdir(parents=True, exist_ok=True)
    local = {"ansible_connection": "local", "ansible_python_interpreter": sys.executable}
    shared = {k: v for file in MESH for k, v in yaml.safe_load(file.read_text("utf-8")).items()}
    known = {name: {**local, **shared, **variables} for name, variables in hosts.items()}
    inventory, book = folder / "hosts.yml", folder / "play.yml"
    inventory.write_text(json.dumps({"all": {"hosts": known}}), encoding="utf-8")
    whole = [{"hosts": "all", "gather_facts": False, "tasks": tasks}]
    book.write_text(json.dumps(whole), encoding="utf-8")
    done = subprocess.run(
        [*_AS_ROOT, Path(sys.executable).parent / "ansible-playbook", f"--inventory={inventory}",
         "--forks=2", f"--extra-vars={json.dumps(instead)}", *options, book],
        env={**os.environ, "LC_ALL": "C.UTF-8", "ANSIBLE_HOME": str(folder),
             "ANSIBLE_REMOTE_TMP": f"{folder}/tmp",
             "ANSIBLE_NOCOLOR": "1", "ANSIBLE_CALLBACK_RESULT_FORMAT": "yaml"},
        cwd=folder, text=True, capture_output=True, timeout=300, check=False,
    )  # fmt: skip
    return Played(done.returncode, done.stdout + done.stderr)


def included(name: str) -> dict[str, Any]:
    """The task that includes a file of the role's tasks."""
    return {"ansible.builtin.include_role": {"name": str(ROLE), "tasks_from": name}}
