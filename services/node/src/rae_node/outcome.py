"""What an outcome means for the submitter: value, error, artifacts. Reads the workspace only."""

from __future__ import annotations

import json
import shutil
import signal
from pathlib import Path
from typing import Any

from rae_node.config import RuntimeConfig
from rae_node.errors import HandBack, TaskFailure
from rae_node.isolation import Outcome
from rae_node.runners.base import MAX_RETURN_BYTES, NOTE_FILE, Plan, note_failure
from rae_node.workspace import Workspace
from rae_protocol.errors import RaeError
from rae_protocol.models import LeasedTask, check_value
from rae_protocol.names import MAX_RESULT_BYTES

MIB = 1024 * 1024
SHOWN_BYTES = 64 * 1024
_MULTIPART_ROOM = 9 * MIB  # the JSON part and what stands between the parts


def time_limit(task: LeasedTask, runtime: RuntimeConfig, plan: Plan) -> tuple[float, str]:
    """The smallest of the time limits, in seconds, and its name."""
    limits = [
        (task.timeout_s, "timeout_s of the task"),
        (
            runtime.execution.task_timeout_minutes * 60,
            "task_timeout_minutes of the node's runtime.yaml",
        ),
    ]
    if plan.max_runtime_s is not None:
        limits.append((plan.max_runtime_s, plan.max_runtime_name))
    return min(limits)


def failure_of(
    outcome: Outcome, plan: Plan, workspace: Workspace, limit_s: float, limit_name: str
) -> TaskFailure | None:
    """Why the attempt failed, None when it did not.

    Raises HandBack when a runner's child says that the node, not the task, is the trouble.
    """
    if outcome.cause == "timeout":
        return TaskFailure(
            "E_TIMEOUT", f"Stopped after {limit_s:g} s: {limit_name} is the smallest limit"
        )
    if outcome.cause == "memory":
        return TaskFailure("E_OOM", f"Killed for memory at {outcome.max_rss_mb:.0f} MiB")
    if outcome.cause == "output" or outcome.signal == signal.SIGXFSZ:
        return TaskFailure("E_ARTIFACT", "Killed because it wrote more than it may")
    note = _note(plan, workspace)
    if note is not None:
        found = note_failure(note)
        if found is not None and found[0] == "HANDBACK":
            raise HandBack("infrastructure", found[1])
        if found is not None:
            return TaskFailure(*found)
    last = workspace.tail(2000)
    ending = f"; its last output:\n{last}" if last else " without any output"
    if outcome.signal is not None:
        return TaskFailure("E_EXIT", f"Ended by {signal_name(outcome.signal)}{ending}")
    if outcome.exit_code != 0:
        return TaskFailure("E_EXIT", f"Exit code {outcome.exit_code}{ending}")
    if plan.result == "note" and note is None:
        return TaskFailure("E_EXIT", f"The task ended without returning{ending}")
    return None


def value_of(outcome: Outcome, plan: Plan, workspace: Workspace) -> Any:
    """The result's value. Raises TaskFailure for one that cannot travel."""
    if plan.result == "note":
        value = (_note(plan, workspace) or {}).get("value")
        try:
            check_value(value, depth=24)
        except RaeError as error:
            raise TaskFailure(
                "E_EXIT", f"The returned value cannot travel: {error.cause}"
            ) from error
        return value
    stdout, more_out = workspace.head("stdout", SHOWN_BYTES)
    stderr, more_err = workspace.head("stderr", SHOWN_BYTES)
    return {
        "exit_code": outcome.exit_code,
        "stdout": stdout,
        "stderr": stderr,
        "truncated": more_out or more_err,
    }


def artifacts_of(task: LeasedTask, workspace: Workspace, staging: Path) -> list[dict[str, Any]]:
    """Copy the declared artifacts to files 0, 1, … and describe them.

    A sole text artifact that is missing is stdout's (C10). Raises TaskFailure E_ARTIFACT; OSError.
    """
    described = []
    total = 0
    for number, spec in enumerate(task.artifacts):
        target, limit = staging / str(number), int(spec.max_mb * MIB)
        found = workspace.collect(spec.name, target, limit)
        if found is None and len(task.artifacts) == 1 and spec.type.startswith("text/plain"):
            instead = workspace.output / f".stdout-{number}"
            shutil.copyfile(workspace.logs / "stdout", instead)
            found = workspace.collect(instead.name, target, limit)
        if found is None:
            raise TaskFailure("E_ARTIFACT", f"'{spec.name}' is neither in output/ nor in work/")
        total += found.size
        if total > MAX_RESULT_BYTES - _MULTIPART_ROOM:
            raise TaskFailure(
                "E_ARTIFACT",
                f"The artifacts have more than {(MAX_RESULT_BYTES - _MULTIPART_ROOM) // MIB} MiB",
            )
        described.append(
            {"name": spec.name, "sha256": found.sha256, "size": found.size, "type": spec.type}
        )
    return described


def signal_name(number: int) -> str:
    """SIGSEGV and the like."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _note(plan: Plan, workspace: Workspace) -> dict[str, Any] | None:
    if plan.result != "note":
        return None
    data = workspace.read_note(NOTE_FILE, MAX_RETURN_BYTES)
    if data is None:
        return None
    try:
        note = json.loads(data)
    except ValueError:
        return None
    return note if isinstance(note, dict) else None
