"""What an outcome means for the submitter: value, error, artifacts. Reads the workspace only."""

from __future__ import annotations

import json
import signal
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rae_node.config.files import RuntimeConfig
from rae_node.context import AgentContext
from rae_node.errors import HandBack, NodeError, TaskFailure
from rae_node.isolation.base import Limits, rlimits
from rae_node.isolation.supervisor_client import Outcome
from rae_node.runners.base import MAX_RETURN_BYTES, Plan, note_failure
from rae_node.runners.capabilities import memory_limit_mb
from rae_node.workspace.workspace import NOTE, Workspace
from rae_protocol.errors import RaeError
from rae_protocol.models import LeasedTask, LeaseRef, check_value
from rae_protocol.names import MAX_RESULT_BYTES

MIB = 1024 * 1024
SHOWN_BYTES = 64 * 1024
_SPARE_SHARE = 0.05  # of the memory: with less left, a machine is slow for its owner
_MAX_TOTAL = MAX_RESULT_BYTES - 9 * MIB  # less the JSON part and what stands between the parts


def time_limit(
    task: LeasedTask, runtime: RuntimeConfig, plan: Plan | None = None
) -> tuple[float, str]:
    """The smallest of the time limits, in seconds, and its name; a plan may have one of its own."""
    owners = runtime.execution.task_timeout_minutes * 60
    limits = [(task.timeout_s, "timeout_s of the task")]
    limits.append((owners, "task_timeout_minutes of the node's runtime.yaml"))
    if plan is not None and plan.max_runtime_s is not None:
        limits.append((plan.max_runtime_s, plan.max_runtime_name))
    return min(limits)


def limits_of(context: AgentContext, plan: Plan, timeout_s: float, *, gpu: bool) -> Limits:
    """What a task may use here. GPU libraries reserve addresses far beyond any memory."""
    settings, config = context.settings, context.config
    memory_mb = memory_limit_mb(config, context.machine)
    largest = (plan.max_output_mb or settings.input_max_mb) * MIB
    spare = 64 * 1024 * (1024 if gpu else 1)
    return Limits(
        timeout_s=timeout_s,
        max_output_bytes=int(min(largest, settings.stdio_max_mb * MIB)),
        memory_mb=memory_mb,
        nice=config.cpu_nice,
        io_class=config.io_class,
        io_level=config.io_level,
        rlimits=rlimits(int(largest), int((memory_mb or 0) + spare) * MIB),
        disk_bytes=int(max(largest, settings.workspace_max_mb * MIB)),
        max_files=int(settings.workspace_max_files),
        spare_memory_mb=(context.machine.memory_mb or 0) * _SPARE_SHARE,
        spare_disk_mb=settings.disk_low_mb,
    )


def unknown_end(*, late: bool, ran: bool) -> NodeError:
    """What it means that a supervisor is gone without an outcome. `late`: at its deadline."""
    if late:
        return HandBack("deadline", "the supervisor was stopped while a deadline passed")
    if not ran:
        return HandBack("infrastructure", "the supervisor ended before it started the task")
    why = "The supervisor of this task was killed; with it ended everything that the task"
    harm = "Submit it again if doing it twice does no harm"
    return TaskFailure("E_LOST", f"{why} had started. {harm}")


def conclude(
    outcome: Outcome, plan: Plan, workspace: Workspace, limit: tuple[float, str]
) -> tuple[Any, TaskFailure | None]:
    """The result's value, and why the attempt failed (None when it did not).

    Raises TaskFailure for a value that cannot travel, HandBack when a runner's child says that the
    node, not the task, is the trouble.
    """
    if outcome.cause == "exit" and not workspace.has_logs():
        raise TaskFailure(
            "E_ARTIFACT",
            "The task removed its own logs/, and its output is lost; leave that folder alone",
        )
    note = _note(workspace) if plan.result == "note" else None
    failure = _failure(outcome, plan, workspace, limit, note)
    if plan.result == "note":
        value = (note or {}).get("value")
        try:
            check_value(value, depth=24)
        except RaeError as error:
            text = f"The returned value cannot travel: {error.cause}"
            raise TaskFailure("E_EXIT", text) from error
        return value, failure
    stdout, more_out = workspace.head("stdout", SHOWN_BYTES)
    stderr, more_err = workspace.head("stderr", SHOWN_BYTES)
    value = {"exit_code": outcome.exit_code, "stdout": stdout, "stderr": stderr}
    return {**value, "truncated": more_out or more_err}, failure


def _failure(
    outcome: Outcome,
    plan: Plan,
    workspace: Workspace,
    limit: tuple[float, str],
    note: dict[str, Any] | None,
) -> TaskFailure | None:
    if outcome.cause == "timeout":
        text = f"Stopped after {limit[0]:g} s; raise {limit[1]}, the smallest limit, or do less"
        return TaskFailure("E_TIMEOUT", text)
    if outcome.cause == "replaced":
        text = "The program was replaced after it had been checked; submit the task again"
        return TaskFailure("E_DENY", text)
    if outcome.cause == "memory":
        return TaskFailure(
            "E_OOM",
            f"Killed for memory at {outcome.max_rss_mb:.0f} MiB; use less, or require ram_gb",
        )
    if outcome.cause == "output" or outcome.signal == signal.SIGXFSZ:
        more = f" ({outcome.problem})" if outcome.problem else ""
        return TaskFailure(
            "E_ARTIFACT", f"Killed because it wrote more than it may{more}; write less, or split it"
        )
    found = note_failure(note or {})
    if found is not None and found[0] == "HANDBACK":
        if plan.may_hand_back:
            raise HandBack("infrastructure", found[1])
        found = "E_EXIT", found[1]
    if found is not None:
        return TaskFailure(*found)
    last = workspace.tail(2000)
    ending = f"; its last output:\n{last}" if last else "; it wrote no output"
    if outcome.signal is not None:
        return TaskFailure("E_EXIT", f"Ended by {signal_name(outcome.signal)}{ending}")
    if plan.result == "note" and note is None:
        text = f"The program ended with exit code {outcome.exit_code} without returning a value"
        return TaskFailure("E_EXIT", text + ending)
    if outcome.exit_code != 0:
        return TaskFailure("E_EXIT", f"Exit code {outcome.exit_code}{ending}")
    return None


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
            found = workspace.copy_out("logs", "stdout", target, limit)
        if found is None:
            raise TaskFailure(
                "E_ARTIFACT", f"'{spec.name}' is neither in output/ nor in work/; write it there"
            )
        size, sha256 = found
        total += size
        if total > _MAX_TOTAL:
            raise TaskFailure(
                "E_ARTIFACT", f"The artifacts exceed {_MAX_TOTAL // MIB} MiB; write less"
            )
        described.append({"name": spec.name, "sha256": sha256, "size": size, "type": spec.type})
    return described


def result_body(
    lease: LeaseRef, status: str, value: Any = None, error: NodeError | None = None,
    outcome: Outcome | None = None, artifacts: Sequence[dict[str, Any]] = (),
) -> dict[str, Any]:  # fmt: skip
    """A result as control takes it."""
    body: dict[str, Any] = {**lease.model_dump(), "status": status, "result": value}
    if error is not None:
        body["error"] = {"code": error.rc, "message": sendable(error.message[:4000])}
    if outcome is not None:
        body["duration_s"] = outcome.duration_s
    return {**body, "artifacts": list(artifacts)}


def signal_name(number: int) -> str:
    """SIGSEGV and the like."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _note(workspace: Workspace) -> dict[str, Any] | None:
    try:
        note = json.loads(workspace.read_note(Path(NOTE).name, MAX_RETURN_BYTES) or b"null")
    except (ValueError, RecursionError):
        return None
    return note if isinstance(note, dict) else None


def sendable(text: str) -> str:
    """Without half surrogate pairs, which a file's name may have and no message may."""
    return text.encode(errors="replace").decode()
