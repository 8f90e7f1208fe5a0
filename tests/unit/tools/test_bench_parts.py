"""A part of `make bench` that fails costs no result of another part."""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from pathlib import Path

import pytest

from tools.bench.__main__ import page
from tools.bench.peers import Peers
from tools.bench.report import Kept, Part, Report, Run, measure
from tools.processes import MeshError

WHERE = "this machine"


def finds(title: str) -> Part:
    """A part that has a result."""

    def part(report: Report, _run: Run) -> None:
        report.section(title, "what")
        report.goal(title, 5, "{:.0f} ms", most=4)

    return part


def fails(report: Report, _run: Run) -> None:
    """A part that stops after its first row."""
    report.row("half")
    raise MeshError("bubblewrap is not installed")


def never(_report: Report, _run: Run) -> None:
    """A part that must not run again."""
    raise AssertionError("measured twice")


def run(parts: Mapping[str, Part], kept: Kept) -> list[str]:
    return measure(Run(Peers(None)), parts, parts, kept, itertools.count(0.0, 7.0).__next__)


def test_the_parts_beside_one_that_fails_are_kept_and_it_is_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = Kept(tmp_path / "some" / "kept.json", WHERE)
    failed = run({"latency": finds("a"), "box": fails, "rest": finds("c")}, kept)
    assert failed == ["part `box` failed: bubblewrap is not installed"]
    assert failed[0] in capsys.readouterr().err
    assert kept.advice().startswith(f"The results of latency, rest are kept in {kept.file}.")
    again = Kept(kept.file, WHERE)
    again.load()
    assert again.results == kept.results
    assert again.results["rest"].seconds == 7


def test_a_result_is_in_the_file_before_the_next_part_begins(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "kept.json", WHERE)

    def looks(_report: Report, _run: Run) -> None:
        on_disk = Kept(kept.file, WHERE)
        on_disk.load()
        assert list(on_disk.results) == ["first"]

    assert run({"first": finds("a"), "second": looks}, kept) == []


def test_a_run_that_resumes_measures_only_what_is_missing_and_the_page_says_so(
    tmp_path: Path,
) -> None:
    first = Kept(tmp_path / "kept.json", WHERE)
    run({"latency": finds("a"), "box": fails}, first)
    second = Kept(first.file, WHERE)
    second.load()
    old = list(second.results)
    assert run({"latency": never, "box": finds("b")}, second) == []
    text = page([WHERE], [second.results[name] for name in ("latency", "box")], old)
    assert "from a run that stopped before its end: latency; every other" in text
    assert text.index("## a") < text.index("## b") < text.index("- a: 5 ms, wanted ≤ 4 ms")
    assert "half" not in text


def test_results_of_another_machine_do_not_count(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "kept.json", WHERE)
    run({"latency": finds("a")}, kept)
    elsewhere = Kept(kept.file, "another machine")
    elsewhere.load()
    assert elsewhere.results == {}


def test_a_fresh_run_forgets_what_was_kept(tmp_path: Path) -> None:
    kept = Kept(tmp_path / "kept.json", WHERE)
    kept.clear()
    run({"latency": finds("a")}, kept)
    kept.clear()
    assert not kept.file.exists()
    assert kept.advice() == "No part has a result."


def test_a_goal_is_met_by_the_number_that_stands_in_its_row() -> None:
    report = Report()
    report.goal("p99", 500.4, "{:.0f} ms", most=500)
    report.goal("singly", 150.0, "{:.0f} /s", least=150)
    assert report.lines == [
        "| p99 | 500 ms | \u2264 500 ms | **no** |", "| singly | 150 /s | \u2265 150 /s | yes |",
    ]  # fmt: skip
    assert report.missed == ["p99: 500 ms, wanted \u2264 500 ms"]
