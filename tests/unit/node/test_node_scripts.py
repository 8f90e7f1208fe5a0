"""The owner's scripts in a tree like /opt/rae-node, as /usr/bin/python3 runs them; the report."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

from rae_node.diagnostics import checks
from rae_node.errors import NodeError
from rae_node.package import DATA


def test_what_is_wrong_with_the_arguments_is_said() -> None:
    with pytest.raises(NodeError, match="No arguments are taken"):
        checks.answer(["user"])


@pytest.mark.parametrize("file", sorted((DATA / "agent").glob("*.py")))
def test_any_python_3_can_read_the_scripts_before_it_says_that_it_is_too_old(file: Path) -> None:
    ast.parse(file.read_text(), feature_version=(3, 7))
