"""Whether boxes can show what tasks need: checked and tried at the agent's start."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from rae_node.config.layout import Layout
from rae_node.errors import NodeError
from rae_node.package import PACKAGE
from rae_node.runners import python_child
from rae_node.workspace.box_paths import (
    Private,
    Shown,
    exposed,
    interpreter,
    private_places,
    why_not,
)
from rae_protocol.errors import in_words

NOT_SHOWN = "not_shown"
MISSING = 3  # the exit code of a probe that does not see all
PROBE_ENV = {"LANG": "C.UTF-8"}  # as a task has it
_PYTHON_FIX = (
    "install the agent with an interpreter in /usr or in a folder of its own, such as /opt/python"
)
# Imports what runs Python tasks, then looks for what it is given.
_PROBE = f"""
import os, runpy, sys
runpy.run_path(sys.argv[1])
def seen(path):
    return os.access(path, os.R_OK | os.X_OK) if os.path.isdir(path) else os.path.isfile(path)
gone = [path for path in sys.argv[2:] if not seen(path)]
os.write(1, os.fsencode(chr(0).join(gone)))
sys.exit({MISSING} if gone else 0)
"""


@dataclass(frozen=True, slots=True)
class View:
    """What every box on this node must show, and what none may."""

    shown: tuple[Shown, ...]
    private: tuple[Private, ...] = ()

    @property
    def paths(self) -> tuple[Path, ...]:
        """What a box that shows all of it shows."""
        return tuple(one.path for one in self.shown)

    @property
    def probe(self) -> tuple[str, ...]:
        """A program that exits 0 in a box with all of it, and MISSING after naming what lacks."""
        seen = [str(one.path) for one in self.shown if one.path.exists()]
        return (sys.executable, "-I", "-B", "-c", _PROBE, python_child.__file__, *seen)

    def check(self) -> None:
        """Raises NodeError `not_shown` for what no box can show, or shows and must not."""
        bare = exposed(self.private)
        if bare is not None:
            raise _refusal(
                f"{bare.what} {bare.path} lies in a folder of the system, which every box shows",
                "move it elsewhere, such as below /opt",
            )
        for one in self.shown:
            try:
                why = why_not(one.path, self.private)
            except OSError as error:
                why = in_words(error)
            if why is not None:
                text = f"a box cannot show {one.what} {one.path}: {why}"
                raise _refusal(text, one.fix)

    def require_success(self, code: int | None, said: str, where: str) -> None:
        """Raises NodeError `not_shown` when the probe did not exit with 0. `where`: what hides."""
        if code == 0:
            return
        gone = said.split("\0") if code == MISSING else []
        for one in self.shown:
            if str(one.path) in gone:
                raise _refusal(f"{one.what} {one.path} is not visible in {where}", one.fix)
        ended = said.strip()[-300:] or f"exit {code}"
        raise _refusal(
            f"Python at {sys.executable} does not start in {where} ({ended})", _PYTHON_FIX
        )


NOTHING = View(())


def view_of(
    layout: Layout, secret: Path | None, programs: Iterable[Path], folders: Iterable[Path]
) -> View:
    """The node's own. `secret`: the file of its enrolment, if it has one.

    `programs`, `folders`: of cli and Python tasks.
    """
    child = Path(python_child.__file__)
    found = [Shown(path, "the agent's Python", _PYTHON_FIX) for path in interpreter()]
    found.append(Shown(child, "the agent's own program", _PYTHON_FIX))
    fix = "move it, and name its new place in the allow-list"
    found += [Shown(path, "the allow-listed program", fix) for path in programs]
    fix = "move the tasks into a folder of their own, and name that in task_paths of config.yaml"
    found += [Shown(path.absolute(), "the task folder", fix) for path in folders]
    return View(tuple(found), tuple(private_places(layout, secret, PACKAGE)))


def _refusal(what: str, fix: str) -> NodeError:
    return NodeError(NOT_SHOWN, f"No task could run: {what}; {fix}")
