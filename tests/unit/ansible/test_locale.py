"""Output of programs that is matched comes in English, whatever the language of the host."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parents[3]
ENGLISH = {"LC_ALL": "C.UTF-8", "LANGUAGE": "C.UTF-8"}
RUNS = {"ansible.builtin.command", "ansible.builtin.shell", "ansible.builtin.script"}
FILES = sorted([*ROOT.glob("roles/*/**/*.yml"), *ROOT.glob("playbooks/**/*.yml")])
# How expressions match what a registered command said.
MATCHES = (
    r"\b{name}\.std\w+[^{{}}]{{0,80}}?\b(?:search|match|regex_search|regex_findall|regex_replace)\b",
    r"\b{name}\.std\w+[^{{}}]{{0,40}}?\bselect\(",
    r"'[^']+' (?:not )?in {name}\.std",
    r"\b{name}\.std\w+(?:\[\d+\])? *(?:\| *\w+ *)*[!=]= *'",
)


def tasks(node: Any, environment: Any = None) -> Iterator[tuple[dict[str, Any], Any]]:
    """Every task below a node of YAML, with the environment that it runs in."""
    if isinstance(node, list):
        for item in node:
            yield from tasks(item, environment)
    elif isinstance(node, dict):
        environment = node.get("environment", environment)
        yield node, environment
        for key in ("tasks", "pre_tasks", "post_tasks", "handlers", "block", "rescue", "always"):
            yield from tasks(node.get(key), environment)


def matched() -> dict[str, Any]:
    """The environment of each task whose output is matched anywhere in its role or playbooks."""
    text: dict[Path, str] = {}
    for file in FILES:
        words = re.sub(r"\s+", " ", file.read_text(encoding="utf-8"))
        text[_unit(file)] = f"{text.get(_unit(file), '')} {words}"
    found = {}
    for file in FILES:
        for task, environment in tasks(yaml.safe_load(file.read_text(encoding="utf-8"))):
            name = task.get("register")
            if name and RUNS & set(task):
                patterns = (one.format(name=name) for one in MATCHES)
                if any(re.search(pattern, text[_unit(file)]) for pattern in patterns):
                    found[f"{file.relative_to(ROOT)}: {task['name']}"] = environment
    return found


def _unit(file: Path) -> Path:
    parts = file.relative_to(ROOT).parts
    return Path(*parts[:2]) if parts[0] == "roles" else Path(parts[0])


MATCHED = matched()


def test_there_is_output_that_is_matched() -> None:
    assert len(MATCHED) > 10


@pytest.mark.parametrize("where", MATCHED)
def test_a_command_whose_output_is_matched_speaks_english(where: str) -> None:
    environment = MATCHED[where]
    assert environment is not None, "it has no environment"
    assert {key: environment.get(key) for key in ENGLISH} == ENGLISH


def captured() -> Iterator[tuple[str, bool]]:
    """(where, whether it names an environment) of each call that reads another program's output."""
    for folder in ("services", "playbooks", "roles"):
        for file in sorted((ROOT / folder).rglob("*.py")):
            for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
                if isinstance(node, ast.Call) and ast.unparse(node.func).startswith("subprocess."):
                    options = {one.arg: ast.unparse(one.value) for one in node.keywords}
                    reads = "capture_output" in options or "PIPE" in " ".join(
                        options.get(key, "") for key in ("stdout", "stderr")
                    )
                    own = bool(node.args) and "sys.executable" in ast.unparse(node.args[0])
                    if reads and not own:
                        yield f"{file.relative_to(ROOT)}:{node.lineno}", "env" in options


CAPTURED = dict(captured())


@pytest.mark.parametrize("where", CAPTURED)
def test_a_program_whose_output_our_programs_read_gets_an_environment(where: str) -> None:
    assert CAPTURED[where]
