"""C8: the agent's own log: its lines, levels, file and events."""

from __future__ import annotations

import ast
import io
import json
import os
import re
from pathlib import Path
from typing import Any

import pytest

import rae_node
from rae_node.build import open_log
from rae_node.config.files import (
    NodeConfig,
    dev_config,
    load_node_config,
)
from rae_node.errors import ConfigError
from rae_node.telemetry.log import ROTATE_BYTES, ROTATE_KEEP, EventLog, LogFile

PAGE = Path(__file__).parents[3] / "docs" / "operations.md"


def lines(text: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in text.splitlines()]


def test_a_file_is_rotated_at_50_mb_and_seven_old_ones_are_kept(tmp_path: Path) -> None:
    """Contract: C8."""
    assert (ROTATE_BYTES, ROTATE_KEEP) == (50_000_000, 7)
    file = LogFile(str(tmp_path / "log"), max_bytes=1000)
    log = EventLog("n1", io.StringIO(), file=file)
    for number in range(200):
        log.info("x", number=number)
    log.flush()
    log.flush()  # the file's trouble is a line after the others
    file.close()
    names = {f"log.{n}" for n in range(1, 8)} | {"log"}
    assert {path.name for path in tmp_path.iterdir()} == names
    assert all(path.stat().st_size <= 1000 for path in tmp_path.iterdir())
    assert lines((tmp_path / "log").read_text())[-1]["attrs"] == {"number": 199}


def test_each_line_has_the_contracts_fields_in_the_file_too(tmp_path: Path) -> None:
    """Contract: C8."""
    file = LogFile(str(tmp_path / "log"))
    stream = io.StringIO()
    log = EventLog("n1", stream, file=file)
    log.warning("x", task_id="t", why="é")
    log.flush()
    file.close()
    assert (tmp_path / "log").read_text() == stream.getvalue()
    assert list(lines(stream.getvalue())[0]) == [
        "ts",
        "level",
        "node_id",
        "task_id",
        "event",
        "attrs",
    ]


def test_below_the_level_nothing_is_written(tmp_path: Path) -> None:
    stream, file = io.StringIO(), LogFile(str(tmp_path / "log"))
    log = EventLog("n1", stream, level="warning", file=file)
    log.info("a")
    log.warning("b")
    log.error("c")
    log.flush()
    file.close()
    for text in (stream.getvalue(), (tmp_path / "log").read_text()):
        assert [line["event"] for line in lines(text)] == ["b", "c"]


def test_a_full_disk_blocks_no_writer_loses_no_line_on_stderr_and_is_logged_once() -> None:
    stream, file = io.StringIO(), LogFile("/dev/full")
    log = EventLog("n1", stream, file=file)
    for number in range(3):
        log.info("x", number=number)
    log.flush()
    log.flush()  # the file's trouble is a line after the others
    file.close()
    told = lines(stream.getvalue())
    assert [line["event"] for line in told] == ["x", "x", "x", "log_file_failed"]
    assert "No space left" in told[3]["attrs"]["error"]
    assert "free space" in told[3]["attrs"]["fix"]


def test_a_file_that_can_be_written_again_is(tmp_path: Path) -> None:
    stream, file = io.StringIO(), LogFile(str(tmp_path / "later" / "log"))
    log = EventLog("n1", stream, file=file)
    log.info("lost")
    log.flush()
    log.flush()  # the file's trouble is a line after it, and as lost
    (tmp_path / "later").mkdir()
    log.info("kept")
    log.flush()
    file.close()
    assert [one["event"] for one in lines((tmp_path / "later" / "log").read_text())] == ["kept"]


def test_logging_is_an_optional_key_with_the_contracts_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Contract: C4."""
    wanted = {"level": "error", "json": False, "path": str(tmp_path / "log")}
    body = dev_config("n1", "http://127.0.0.1:1")
    log = open_log(NodeConfig.model_validate({**body, "logging": wanted}))
    log.info("hidden")
    log.error("shown", why="so")
    log.flush()
    assert (tmp_path / "log").read_text().endswith(" error   shown  why=so\n")
    assert capsys.readouterr().err == (tmp_path / "log").read_text()
    log = open_log(NodeConfig.model_validate(body))
    log.info("plain", a=1)
    log.flush()
    assert lines(capsys.readouterr().err)[0]["attrs"] == {"a": 1}


@pytest.mark.parametrize("wrong", ["level: loud", "path: here.log", "colour: true", "json: maybe"])
def test_a_wrong_logging_key_is_named(tmp_path: Path, wrong: str) -> None:
    (tmp_path / "config.yaml").write_text(
        "{node_id: n, trusted: true, capabilities: {}, heartbeat_interval_sec: 1,\n"
        f" rae_endpoint: 'http://127.0.0.1:1',\n logging: {{{wrong}}}}}"
    )
    with pytest.raises(ConfigError, match=rf"yaml:3: logging\.{wrong.partition(':')[0]}"):
        load_node_config(tmp_path / "config.yaml")


def events(tree: ast.AST) -> set[str]:
    """Names of the events that a module writes."""
    found = set()
    for node in ast.walk(tree):
        if not isinstance(node, ast.Call) or not isinstance(node.func, ast.Attribute):
            continue
        target = ast.unparse(node.func.value)
        if node.func.attr not in {"info", "warning", "error"} or not (
            target.endswith("log") or target == "self"
        ):
            continue
        name = node.args[0]
        for part in (name.body, name.orelse) if isinstance(name, ast.IfExp) else (name,):
            text = ast.unparse(part)
            for kind in ("result", "yield") if isinstance(part, ast.JoinedStr) else ("",):
                found.add(re.sub(r"\{.*\}", kind, text.lstrip("f").strip("'")))
    return found


def test_every_event_in_the_code_is_in_the_page_and_no_other() -> None:
    folder = Path(rae_node.__file__).parent
    used = set().union(*(events(ast.parse(file.read_text())) for file in folder.rglob("*.py")))
    assert all(re.fullmatch("[a-z_]+", name) for name in used), used
    table = PAGE.read_text(encoding="utf-8").partition("### Events")[2]
    documented = re.findall(r"`([a-z_]+)`", "\n".join(re.findall(r"^\| (`.*?) \|", table, re.M)))
    assert sorted(documented) == sorted(used)


def test_a_stream_without_a_reader_blocks_no_writer() -> None:
    """The owner must get the machine back even while the journal hangs."""
    reading, writing = os.pipe()
    with os.fdopen(writing, "w") as stream:
        log = EventLog("n1", stream)
        for number in range(20_000):
            log.info("x", number=number, words="w" * 100)
        with os.fdopen(reading) as reader:
            first = json.loads(reader.readline())
            assert first["attrs"]["number"] == 0
            seen = iter(reader.readline, "")
            assert any("log_lines_lost" in line for line in seen)
            log.flush()


def test_a_line_for_people_is_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    log = EventLog("n1", as_json=False)
    log.info("x", why="one\n12:00:00 error forged")
    log.flush()
    assert capsys.readouterr().err.count("\n") == 1


def test_the_log_never_shows_a_secret(tmp_path: Path) -> None:
    with (tmp_path / "log").open("w") as stream:
        log = EventLog("n1", stream)
        log.info("x", task_id="t", node_token="abc", other=1)
        log.flush()
    line = json.loads((tmp_path / "log").read_text())
    assert line["attrs"] == {"node_token": "(hidden)", "other": 1}
    assert (line["event"], line["task_id"], line["node_id"]) == ("x", "t", "n1")
