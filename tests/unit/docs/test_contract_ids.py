"""Ids of the contract: what is cited stands in docs/contract.md."""

from __future__ import annotations

import re
from pathlib import Path

CHECKOUT = Path(__file__).resolve().parents[3]
CONTRACT = CHECKOUT / "docs" / "contract.md"
FOLDERS = ("services", "tests", "tools", "roles", "playbooks", "molecule", "inventory", "docs")
SUFFIXES = {".py", ".md", ".yml", ".yaml", ".j2", ".service"}
# Ids of the contract in prose. C99 is a C standard, not an id.
IN_PROSE = re.compile(r"(?<![\w#./'\"=-])(?!C99)([A-EZ][1-9][0-9]?)(?![\w'\"=-])")
IN_NAMES = re.compile(r"def (test_[a-z][0-9]+_\w+)")


def contract_ids() -> list[str]:
    return re.findall(r"^- \*\*([A-Z]\d+)\*\*", CONTRACT.read_text(encoding="utf-8"), re.M)


def test_each_id_stands_once_and_in_order() -> None:
    ids = contract_ids()
    sections = sorted({one[0] for one in ids})
    assert sections == ["A", "B", "C", "D", "E", "Z"]
    for section in sections:
        numbers = [int(one[1:]) for one in ids if one[0] == section]
        assert numbers == list(range(1, len(numbers) + 1))


def test_each_id_that_code_docs_and_tests_cite_stands_in_the_contract() -> None:
    known, cited = set(contract_ids()), dict[str, str]()
    files = [file for folder in FOLDERS for file in (CHECKOUT / folder).rglob("*")]
    for file in [*files, CHECKOUT / "README.md"]:
        if file.suffix not in SUFFIXES or file == CONTRACT or not file.is_file():
            continue
        found = IN_PROSE.findall(file.read_text(encoding="utf-8"))
        cited.update(dict.fromkeys(found, str(file)))
    assert len(cited) > 30  # the search works
    assert {one: where for one, where in cited.items() if one not in known} == {}


def test_no_tests_name_is_an_id() -> None:
    files = [*(CHECKOUT / "tests").rglob("test_*.py")]
    named = [name for file in files for name in IN_NAMES.findall(file.read_text(encoding="utf-8"))]
    assert len(files) > 100
    assert named == []
