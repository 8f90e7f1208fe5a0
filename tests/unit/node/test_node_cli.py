"""The rae-node program: durations, usage and failures."""

from __future__ import annotations

from pathlib import Path

import pytest

from rae_node.cli import main, parse_duration
from rae_node.config.layout import Layout


def test_a_pause_ends_without_an_agent_and_only_where_there_is_one(
    layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    paused = layout.run / "pause.json"
    paused.write_text('{"until": null}')
    assert main(["resume", "--root", str(layout.root)]) == 0
    assert capsys.readouterr().out.startswith("Resumed") and not paused.exists()
    assert main(["resume", "--root", str(layout.root)]) == 1
    assert "systemctl start rae-node" in capsys.readouterr().err


@pytest.mark.parametrize(("text", "seconds"), [("90s", 90), ("30m", 1800), ("2h", 7200), ("5", 5)])
def test_durations_are_read_as_people_write_them(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("argv", [["pause", "soon"], ["pause", "-1m"], ["fly"], []])
def test_wrong_usage_exits_2(argv: list[str]) -> None:
    with pytest.raises(SystemExit) as left:
        main(argv)
    assert left.value.code == 2


def test_a_failure_is_one_sentence_with_a_hint_and_exit_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--root", str(tmp_path)]) == 1
    assert main(["run", "--dev", "--data", str(tmp_path)]) == 1
    assert main(["run", "--root", str(tmp_path)]) == 1
    assert main(["check-config", str(tmp_path / "none.yaml")]) == 1
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 4 and all(line.startswith("rae-node: ") for line in lines)
    assert "rae-control serve --dev" in lines[1]
