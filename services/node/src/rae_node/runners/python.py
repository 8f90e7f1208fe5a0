"""`python`: `tasks.<name>:run(**params)` from folders that only the owner can write."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from rae_node.errors import TaskFailure, listed
from rae_node.runners import python_child
from rae_node.runners.base import Params, Plan, child_plan, parse_params
from rae_node.workspace import Workspace
from rae_protocol.models import LeasedTask

_PACKAGE = Path(python_child.__file__).resolve().parents[1]
_NAME = re.compile(r"(?:tasks\.)?([A-Za-z_][A-Za-z0-9_]{0,63})(?::run)?")


class PythonParams(Params):
    """`{"task": "example", "params": {…}}`; `tasks.example:run` is the same."""

    task: str
    params: dict[str, Any] = Field(default_factory=dict)


class PythonRunner:
    """Runs trusted modules in an interpreter of their own."""

    kind = "python"

    def __init__(self, folders: Sequence[Path], workdir: Path) -> None:
        self._folders, self._workdir = tuple(folders), workdir

    def names(self) -> list[str]:
        """Tasks that may be named."""
        return sorted(
            {
                file.stem
                for folder in self._folders
                for file in folder.glob("*.py")
                if file.stem != "__init__" and untrusted(file, self._workdir) is None
            }
        )

    def plan(self, task: LeasedTask, workspace: Workspace) -> Plan:
        """The interpreter with the call. Raises TaskFailure E_INVALID, E_DENY; OSError."""
        params = parse_params(PythonParams, task)
        match = _NAME.fullmatch(params.task)
        file = self._find(match[1]) if match else None
        if file is None:
            raise TaskFailure(
                "E_DENY",
                f"There is no trusted task '{params.task[:100]}' on this node; "
                f"choose from {listed(self.names(), limit=60)}",
            )
        call = {
            "module": str(file.resolve()),
            "params": params.params,
            **{name: str(workspace.seen / name) for name in ("input", "output", "work")},
        }
        plan = child_plan(python_child.__file__, call, workspace, workspace.seen)
        return replace(plan, shown=(*plan.shown, file.parent.resolve()))

    def _find(self, name: str) -> Path | None:
        for folder in self._folders:
            file = folder / f"{name}.py"
            if file.is_file():
                why = untrusted(file, self._workdir)
                if why is not None:
                    raise TaskFailure("E_DENY", f"The task '{name}' is not trusted: {why}")
                return file
        return None


def untrusted(file: Path, workdir: Path) -> str | None:
    """Why a task file cannot be trusted, None when it can: who may write it decides."""
    real = file.resolve()
    if real.is_relative_to(workdir.resolve()):
        return f"{file} is inside the workspaces"
    if real.is_relative_to(_PACKAGE):
        return None  # whoever could write here could change the agent itself (umask 002 in a clone)
    for path in (real, real.parent):
        info = path.stat()
        if info.st_uid not in {0, os.getuid()}:
            return f"{path} belongs to another user"
        if info.st_mode & (stat.S_IWGRP | stat.S_IWOTH):
            return f"{path} can be written by others; chmod go-w"
    return None
