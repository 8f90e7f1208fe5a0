"""`python` tasks: parameters are checked before anything starts, against the file's own text."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from rae_node.runners import python_child


def call_child(tmp_path: Path, text: str, params: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    """Run the child as a box does: other folders, a note that is there, and a bare Python."""
    box = tmp_path / "box"
    for name in ("input", "work", "output"):
        (box / name).mkdir(parents=True)
    (tmp_path / "t.py").write_text(text)
    (tmp_path / "note").write_text("")
    call = {
        "module": str(tmp_path / "t.py"), "params": params, "note": str(tmp_path / "note"),
        **{name: str(box / name) for name in ("input", "work", "output")},
    }  # fmt: skip
    (tmp_path / "call").write_text(json.dumps(call))
    child = [getattr(sys, "_base_executable", sys.executable), "-I", "-S", "-B"]
    done = subprocess.run(
        [*child, python_child.__file__, str(tmp_path / "call")],
        env={"PATH": os.defpath}, check=False, timeout=60, capture_output=True,
    )  # fmt: skip
    note: dict[str, Any] = json.loads((tmp_path / "note").read_text())
    return done.returncode, note


def test_the_child_needs_the_standard_library_only_and_takes_its_folders_from_the_call(
    tmp_path: Path,
) -> None:
    text = "def run(ctx, n: int):\n (ctx.output / 'x').write_text('y' * n)\n return str(ctx.input)"
    code, note = call_child(tmp_path, text, {"n": 3})
    assert (code, note) == (0, {"value": str(tmp_path / "box" / "input")})
    assert (tmp_path / "box" / "output" / "x").read_text() == "yyy"


@pytest.mark.parametrize(
    ("text", "params", "words"),
    [
        ("def run(a): pass", {"b": 1}, "params do not fit run(a)"),
        ("def run(ctx): pass", {"ctx": 1}, "'ctx' is given"),
        ("def walk(): pass", {}, "has no run(); add one"),
    ],
)
def test_the_childs_check_is_the_last_word(
    tmp_path: Path, text: str, params: dict[str, Any], words: str
) -> None:
    code, note = call_child(tmp_path, text, params)
    assert code == 1 and note["error"]["code"] == "E_INVALID" and words in note["error"]["message"]
