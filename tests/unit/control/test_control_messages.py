"""Every message says what, why and what to do: control's and raectl's."""

from __future__ import annotations

from pathlib import Path

import pytest

import rae_control
from rae_control import errors
from rae_control.cli.rae_control import main
from tests.messages import faults, written

KINDS = [kind for kind in vars(errors).values() if isinstance(kind, type)]
ERRORS = frozenset({kind.__name__ for kind in KINDS} | {"UsageError"})


def test_every_message_in_the_code_tells_a_way_out() -> None:
    found = list(written(Path(rae_control.__file__).parent, ERRORS))
    assert len(found) > 20
    assert [(where, text, wrong) for where, text in found if (wrong := faults(text))] == []


def test_every_kind_of_error_has_an_exit_code_of_its_own() -> None:
    codes = [kind.rc for kind in KINDS]
    assert len(codes) == len(set(codes))
    assert 0 not in codes


@pytest.mark.parametrize(
    ("argv", "way_out"),
    [
        (["serve", "--dev", "--data", __file__], "choose another name"),
        (["serve", "--dev", "--data", "X", "--set", "colour=1"], "is not known; remove it"),
        (["serve", "--dev", "--data", "X", "--set", "skew_s=soon"], "must be a decimal number"),
        (["serve", "--dev", "--data", "X", "--set", "skew_s"], "write NAME=VALUE"),
        (["serve", "--dev", "--data", "X", "--config", "/nowhere"], "check the path"),
        (["serve", "--dev", "--data", "X", "--config", "/"], "name a file"),
        (["check", "--data", "X"], "name control's folder with --data"),
        (["backup", "--data", "X", "b.tar"], "name control's folder with --data"),
        (["restore", "--data", "X", "b.tar"], "name a file that `rae-control backup` wrote"),
        (["restore", "--data", "X", __file__], "take another backup"),
    ],
)
def test_each_mistake_is_answered_with_the_way_out(
    argv: list[str], way_out: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main([str(tmp_path / "x") if word == "X" else word for word in argv]) != 0
    said = capsys.readouterr().err.removeprefix("rae-control: ")
    assert way_out in said
    assert faults(said) == []
