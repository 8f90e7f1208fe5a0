"""Every refusal of a playbook names the host, the cause and the way out."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.messages import faults

ROOT = Path(__file__).resolve().parents[3]
HOST = re.compile(r"\{\{ *(inventory_hostname|groups)\b|host by host")


def tasks(node: Any) -> Iterator[dict[str, Any]]:
    """Every task below a node of YAML, blocks and plays included."""
    if isinstance(node, list):
        for item in node:
            yield from tasks(item)
    elif isinstance(node, dict):
        yield node
        for key in ("tasks", "pre_tasks", "post_tasks", "handlers", "block", "rescue", "always"):
            yield from tasks(node.get(key))


def refusals() -> Iterator[tuple[str, Any]]:
    """(where, text) of what `assert` and `fail` say."""
    files = [*ROOT.glob("roles/*/tasks/*.yml"), *ROOT.glob("playbooks/**/*.yml")]
    for file in sorted(files):
        for task in tasks(yaml.safe_load(file.read_text(encoding="utf-8"))):
            where = f"{file.relative_to(ROOT)}: {task.get('name')}"
            if "ansible.builtin.assert" in task:
                yield where, task["ansible.builtin.assert"].get("fail_msg", "")
            elif "ansible.builtin.fail" in task:
                yield where, task["ansible.builtin.fail"].get("msg", "")


REFUSALS = dict(refusals())


def test_there_are_refusals_to_look_at() -> None:
    assert len(REFUSALS) > 30


@pytest.mark.parametrize("where", REFUSALS)
def test_a_refusal_names_the_host_the_cause_and_the_way_out(where: str) -> None:
    said = REFUSALS[where]
    text = said if isinstance(said, str) else " ".join(said)
    assert HOST.search(text), "it names no host"
    # What is put in when it is said: the rule of messages reads the words around it.
    words = re.sub(r"\{\{.*?\}\}", "X", text, flags=re.DOTALL)
    assert faults(words) == []
