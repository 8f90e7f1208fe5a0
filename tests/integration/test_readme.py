"""The README's commands work as they stand there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from tests.until import until
from tools.processes import Process

ROOT = Path(__file__).parents[2]
BIN = Path(sys.executable).parent
README = (ROOT / "README.md").read_text(encoding="utf-8")
MAKE, SERVERS, CALLS = (
    [line.partition("  #")[0].strip() for line in block.splitlines()]
    for block in re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
)


def command(line: str, data: Path) -> list[str]:
    """A line of the README with this environment's programs and a folder of the test's own."""
    words = [word.replace(".venv/bin/", f"{BIN}/") for word in shlex.split(line)]
    return [str(data) if word == "data" else word for word in words]


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Path]:
    """Control and a node, started as the README says (on a free port)."""
    folder = tmp_path / "data"
    with ThreadPoolExecutor(1) as spawner:
        parts = []
        try:
            for number, line in enumerate(SERVERS):
                words = command(line, folder) + (["--port", "0"] if " serve " in line else [])
                part = Process(line, words, tmp_path / f"{number}.log", spawner)
                parts.append(part)
                part.start()
                if number == 0:
                    until(lambda: "listens" in parts[0].tail(), "control listens", 30)
            yield folder
        finally:
            for part in reversed(parts):
                part.stop()


def call(line: str, data: Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith("RAE_")}
    environment["RAE_CREDENTIALS"] = str(data / "credentials.json")
    return subprocess.run(
        command(line, data), cwd=ROOT, env=environment, capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip


def test_the_blocks_are_the_ones_that_these_tests_know() -> None:
    assert MAKE == ["make demo", "make test", "make"]
    assert [shlex.split(line)[0] for line in SERVERS] == [
        ".venv/bin/rae-control",
        ".venv/bin/rae-node",
    ]
    programs = {shlex.split(line)[0] for line in CALLS}
    assert programs == {".venv/bin/raectl", ".venv/bin/rae-node"}


def test_the_first_screen_has_the_demo_and_the_tests() -> None:
    first = README.splitlines()[:25]
    for verb in ("make demo", "make test"):
        assert any(line.startswith(f"{verb} ") for line in first)


def test_a_mesh_of_ones_own_runs_the_readmes_task(data: Path) -> None:
    until(lambda: " online " in call(CALLS[0], data).stdout, "the node is online", 30)
    for line in CALLS:
        done = call(line, data)
        assert done.returncode == 0, f"{line}: {done.stdout}{done.stderr}"
        assert done.stdout


def test_make_alone_prints_its_verbs() -> None:
    done = subprocess.run(["make"], cwd=ROOT, capture_output=True, text=True, check=True)
    for verb in ("venv", "demo", "test", "test-all", "chaos", "fmt", "lint", "clean"):
        assert f"make {verb} " in done.stdout


def _is_there(page: str, heading: str) -> bool:
    if not (ROOT / page).exists():
        return False
    lines = (ROOT / page).read_text(encoding="utf-8").splitlines() if heading else []
    names = (line.strip("# ").lower().replace(" ", "-") for line in lines if line.startswith("#"))
    return not heading or heading in names


def test_the_pages_that_the_readme_names_exist() -> None:
    pages = re.findall(r"\]\(([^)]+)\)", README)
    assert pages
    assert [page for page in pages if not _is_there(*page.partition("#")[::2])] == []
