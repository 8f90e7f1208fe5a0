"""The one interface of runners, and the environment that every task gets."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, TypeVar

from pydantic import BaseModel, ConfigDict, ValidationError

from rae_node.errors import TaskFailure, first_problem
from rae_node.workspace.box_paths import interpreter
from rae_node.workspace.workspace import CALL, INSIDE, NOTE, Workspace
from rae_protocol.models import LeasedTask

PATH = "/usr/local/bin:/usr/bin:/bin"
MAX_RETURN_BYTES = 4 * 1024 * 1024


class Params(BaseModel):
    """Base of the runners' parameters: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


@dataclass(frozen=True, slots=True)
class Plan:
    """How to run a task. `result`: from stdout and stderr, or from a note that the child leaves.

    `max_runtime_s` and `max_output_mb` are the runner's own caps, None for no own cap. A note may
    hand the task back only where the program is ours alone. `trusted`: a program of ours that runs
    no submitter's code and needs no box; `shown`: what a box must show besides the system.
    """

    argv: tuple[str, ...]
    result: Literal["stdio", "note"]
    max_runtime_s: float | None = None
    max_runtime_name: str = ""
    max_output_mb: float | None = None
    may_hand_back: bool = False
    trusted: bool = False
    shown: tuple[Path, ...] = ()
    identity: tuple[int, ...] | None = None  # of argv[0] when it was checked (trust.identity)


class Runner(Protocol):
    """One kind of task."""

    kind: str

    def plan(self, task: LeasedTask, workspace: Workspace) -> Plan:
        """How to run it. Raises TaskFailure (E_DENY, E_INVALID), HandBack, OSError."""
        ...


def child_plan(program: str, call: dict[str, Any], workspace: Workspace, root: Path) -> Plan:
    """Python itself, running one of our programs with a call; it leaves a note. Raises OSError.

    `root`: what the program calls the workspace.
    """
    text = json.dumps({**call, "note": str(root / NOTE)})
    (workspace.path / CALL).write_text(text, encoding="utf-8")
    (workspace.path / CALL).chmod(0o640)
    (workspace.path / NOTE).touch()  # a box shows what is there
    (workspace.path / NOTE).chmod(0o660)
    argv = (sys.executable, "-I", "-B", program, str(root / CALL))
    return Plan(argv, "note", shown=(*interpreter(), Path(program)))


P = TypeVar("P", bound=Params)


def parse_params(model: type[P], task: LeasedTask) -> P:
    """The task's parameters. Raises TaskFailure E_INVALID naming the field."""
    try:
        return model.model_validate(task.params)
    except ValidationError as error:
        problem = first_problem(error, "params")
        raise TaskFailure("E_INVALID", f"{task.kind}: params: {problem}") from error


def environment(task: LeasedTask, root: Path, devices: Sequence[str]) -> dict[str, str]:
    """The whole environment of a task: what it calls its workspace, the GPUs of its slot."""
    return {
        "PATH": PATH,
        "HOME": str(root / "work"),
        "TMPDIR": "/tmp" if root == INSIDE else str(root / "tmp"),  # noqa: S108 - the box's own
        "LANG": "C.UTF-8",
        "CUDA_VISIBLE_DEVICES": ",".join(devices),
        "RAE_TASK_ID": task.task_id,
        "RAE_ATTEMPT": str(task.attempt),
    }


def note_failure(note: dict[str, Any]) -> tuple[str, str] | None:
    """(code, message) out of a child's note, None when it returned a value."""
    error = note.get("error")
    if not isinstance(error, dict):
        return None
    code, message = str(error.get("code", "")), str(error.get("message", ""))
    known = code in {"E_INVALID", "E_EXIT", "E_OOM", "E_ARTIFACT", "HANDBACK"}
    # Half a surrogate pair would make a message that could never be sent.
    return (code if known else "E_EXIT"), message[:3500].encode(errors="replace").decode()
