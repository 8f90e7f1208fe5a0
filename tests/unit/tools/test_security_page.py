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


def test_each_test_that_the_page_names_with_its_file_is_in_that_file() -> None:
    page = (ROOT / "docs" / "security.md").read_text()
    pairs = set(re.findall(r"(test_\w+\.py)::(test_\w+)", page))
    assert len(pairs) > 10
    files = {name: list((ROOT / "tests").rglob(name)) for name, _ in pairs}
    assert [
        (name, test)
        for name, test in sorted(pairs)
        if not any(f"def {test}(" in file.read_text() for file in files[name])
    ] == []
