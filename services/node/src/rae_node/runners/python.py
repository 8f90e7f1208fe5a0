"""`python`: `tasks.<name>:run(**params)` from folders that only the owner can write."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from pydantic import Field

from rae_node.errors import TaskFailure, listed
from rae_node.runners import python_child
from rae_node.runners.base import Params, Plan, child_plan, parse_params
from rae_node.runners.signature import read_signature
from rae_node.runners.trust import untrusted
from rae_node.workspace.workspace import Workspace
from rae_protocol.models import LeasedTask

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
        signature = read_signature(file)
        problem = signature and signature.problem(params.params)
        if problem:
            raise TaskFailure("E_INVALID", f"The task '{file.stem}': params: {problem}")
        call = {
            "module": str(file.resolve()),
            "params": params.params,
            **{name: str(workspace.seen / name) for name in ("input", "output", "work")},
        }
        plan = child_plan(python_child.__file__, call, workspace, workspace.seen)
        # Of a file that is a link out of its folder, what it leads to, and nothing beside that.
        return replace(plan, shown=(*plan.shown, file.parent, file))

    def _find(self, name: str) -> Path | None:
        for folder in self._folders:
            file = folder / f"{name}.py"
            if file.is_file():
                why = untrusted(file, self._workdir)
                if why is not None:
                    raise TaskFailure("E_DENY", f"The task '{name}' is not trusted: {why}")
                return file
        return None
