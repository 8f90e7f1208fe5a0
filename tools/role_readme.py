"""`make docs`: each role's README.md, from `meta/argument_specs.yml`, its one documentation."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

ROLES = Path(__file__).resolve().parents[1] / "roles"


def prose(text: str | list[str]) -> str:
    """Ansible's markup as Markdown, in one paragraph."""
    joined = text if isinstance(text, str) else " ".join(text)
    return re.sub(r"\b(?:O\((?:[a-z]+\.)?|C\()([^)]*)\)", r"`\1`", joined)


def shown(option: Mapping[str, Any]) -> str:
    """An option's default, as one would write it."""
    default = option["default"]
    return default if isinstance(default, str) and default else json.dumps(default)


def table(options: Mapping[str, Any]) -> list[str]:
    """Options as the rows of a table."""
    lines = ["| variable | default | description |", "|---|---|---|"]
    for name, option in options.items():
        default = f"`{shown(option)}`" if "default" in option else ""
        choices = f" One of {', '.join(option['choices'])}." if "choices" in option else ""
        cells = f"`{name}`", default, prose(option["description"])
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + f"{choices} |")
    return lines


def readme(role: str) -> str:
    """The README of a role: its variables, then the entry points that others include."""
    specs = yaml.safe_load((ROLES / role / "meta" / "argument_specs.yml").read_text("utf-8"))
    lines = list[str]()
    for name, spec in specs["argument_specs"].items():
        head = f"# {role}" if name == "main" else f"## `tasks_from: {name}.yml`"
        said = [f"- {prose(line)}" for line in spec.get("description", [])]
        lines += [head, "", f"{spec['short_description']}.", ""]
        lines += [*said, ""] if said else []
        lines += [*table(spec["options"]), ""] if "options" in spec else []
    made = (
        "`make docs` generates this file from [meta/argument_specs.yml](meta/argument_specs.yml)."
    )
    return "\n".join([*lines, made, ""])


def main() -> int:
    """Write them all."""
    for folder in sorted(ROLES.iterdir()):
        (folder / "README.md").write_text(readme(folder.name), encoding="utf-8")
        print(f"roles/{folder.name}/README.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
