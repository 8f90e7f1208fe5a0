"""A part of `make bench` that fails costs no result of another part."""

from __future__ import annotations

from pathlib import Path

import pytest

from tools.bench.__main__ import main
from tools.bench.parts import PARTS
from tools.bench.peers import Peers
from tools.bench.report import Part, Report, Run
from tools.processes import MeshError


def test_a_part_beside_other_queues_says_that_it_needs_them() -> None:
    with pytest.raises(MeshError, match="run make bench without PART"):
        Peers(None).measure("rq Worker")


def finds(title: str) -> Part:
    """A part that has a result."""

    def part(report: Report, _run: Run) -> None:
        report.section(title, "what")
        report.goal(title, 5, "{:.0f} ms", most=4)

    return part


def test_a_whole_run_writes_every_part_into_the_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # results are kept below the working directory
    written = tmp_path / "benchmarks.md"
    assert "grows" in PARTS
    assert main(["--write", str(written)], {name: finds(f"part {name}") for name in PARTS}) == 0
    heads = [line for line in written.read_text().splitlines() if line.startswith("## part ")]
    assert heads == [f"## part {name}" for name in PARTS]
