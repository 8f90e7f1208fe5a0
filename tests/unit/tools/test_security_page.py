"""`docs/security.md` names tests that are there."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_every_test_that_the_security_page_names_is_there() -> None:
    named = set(re.findall(r"\b(test_\w+\.py)\b", (ROOT / "docs" / "security.md").read_text()))
    there = {file.name for file in (ROOT / "tests").rglob("test_*.py")}
    assert len(named) > 10 and named - there == set()


def test_every_test_that_proves_a_promise_is_there() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    named = set(re.findall(r"\b(test_\w+)\b(?!\.py)", page))
    text = "".join(file.read_text() for file in (ROOT / "tests").rglob("test_*.py"))
    assert len(named) > 10
    assert {name for name in named if f"def {name}(" not in text} == set()
