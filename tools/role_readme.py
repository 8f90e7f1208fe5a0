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


def readme(role: str) -> str:
    """The README of a role."""
    specs = yaml.safe_load((ROLES / role / "meta" / "argument_specs.yml").read_text("utf-8"))
    spec = specs["argument_specs"]["main"]
    lines = [
        f"# {role}",
        "",
        f"{spec['short_description']}.",
        "",
        *(f"- {prose(line)}" for line in spec["description"]),
        "",
        "| variable | default | |",
        "|---|---|---|",
    ]
    for name, option in spec["options"].items():
        cells = f"`{name}`", f"`{shown(option)}`", prose(option["description"])
        choices = f" One of {', '.join(option['choices'])}." if "choices" in option else ""
        lines.append("| " + " | ".join(cell.replace("|", r"\|") for cell in cells) + f"{choices} |")
    made = "Made of [meta/argument_specs.yml](meta/argument_specs.yml) by `make docs`."
    return "\n".join([*lines, "", made, ""])


def main() -> int:
    """Write them all."""
    for folder in sorted(ROLES.iterdir()):
        (folder / "README.md").write_text(readme(folder.name), encoding="utf-8")
        print(f"roles/{folder.name}/README.md")
    return 0


if __name__ == "__main__":
    sys.exit(main())
