"""`raectl allowlist` says beforehand what a node will say; it needs no control."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from rae_control.cli.raectl import main
from rae_control.cli.raectl_allowlist import EXAMPLE
from rae_node.errors import TaskFailure
from rae_node.runners.cli import AllowFolders
from tests.messages import faults

FILE = r"""
- path: /bin/cat
  args: [['(?!-).+']]
- path: /bin/sort
  args:
    - ['-k', '[0-9]+']
    - ['[a-z]+']
  max_runtime_s: 60
"""


@pytest.fixture
def file(tmp_path: Path) -> Path:
    found = tmp_path / "own.yaml"
    found.write_text(FILE)
    return found


def test_an_allowed_command_is_exit_code_0_and_names_entry_and_caps(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["allowlist", "check", str(file), "--", "sort", "-k", "2", "a"]) == 0
    caps = "at most 60 s, 1024 MB of output, 4096 bytes of arguments"
    assert capsys.readouterr().out == f"allowed by entry 2 of {file} ({caps})\n"
    assert main(["allowlist", "check", "--json", str(file), "--", "cat", "a"]) == 0
    assert json.loads(capsys.readouterr().out)["entry"] == 1


@pytest.mark.parametrize(
    "call",
    ["sort -k x", "sort -k", "sort -o b", "sort A", "cat ../x", "cat -- a", "cat -",
     "rm -rf x", "cat a b /c"],
)  # fmt: skip
def test_a_refused_command_is_exit_code_1_with_the_sentence_of_the_node(
    file: Path, call: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command, *args = call.split()
    with pytest.raises(TaskFailure) as refused:
        AllowFolders([file.parent]).check(command, args)
    assert main(["allowlist", "check", str(file), "--", command, *args]) == 1
    assert capsys.readouterr().out == refused.value.message + "\n"
    assert main(["--json", "allowlist", "check", str(file), "--", command, *args]) == 1
    answer = json.loads(capsys.readouterr().out)
    assert (answer["allowed"], answer["message"]) == (False, refused.value.message)


def test_a_bad_file_or_call_is_exit_code_2_and_says_where(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def wrong(*words: str) -> str:
        assert main(["allowlist", *words]) == 2
        said = capsys.readouterr().err
        assert faults(said.removeprefix("raectl: ")) == []
        return said

    assert "write it after --" in wrong("check", str(file))
    assert "write it after --" in wrong("check", str(file), "--")
    assert "check the path" in wrong("show", "/nowhere/x.yaml")
    file.write_text(FILE.replace("max_runtime_s", "max_run_s"))
    assert f"{file}:8: entry 2: max_run_s: is not known; remove it; known here are" in wrong(
        "check", str(file), "--", "cat"
    )
    file.write_text(FILE.replace("[0-9]+", "([0-9]+)+"))
    assert f"{file}:6: entry 2: args.0.1: " in wrong("show", str(file))


def test_show_without_a_file_writes_one_to_begin_with(
    file: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["allowlist", "show"]) == 0
    shown = capsys.readouterr().out
    assert shown == EXAMPLE
    file.write_text(shown)
    call = ["ffmpeg", "-y", "-i", "a.mp4", "output.mp4"]
    assert main(["allowlist", "check", str(file), "--", *call]) == 0
    capsys.readouterr()
    assert main(["allowlist", "show", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "entry 1: ffmpeg (/usr/bin/ffmpeg), at most 7200 s, 5000 MB" in shown
    assert "-i  followed by  .+" in shown
    assert main(["allowlist", "show", "--json", str(file)]) == 0
    assert json.loads(capsys.readouterr().out)[str(file)][0]["path"] == "/usr/bin/ffmpeg"


@pytest.mark.parametrize("written", ["010", "1:30", "0x10"])
def test_a_cap_that_is_no_decimal_number_is_refused_with_its_line(
    file: Path, written: str, capsys: pytest.CaptureFixture[str]
) -> None:
    file.write_text(FILE.replace("max_runtime_s: 60", f"max_runtime_s: {written}"))
    assert main(["allowlist", "show", str(file)]) == 2
    assert f"{file}:8: entry 2: max_runtime_s: must be a" in capsys.readouterr().err
