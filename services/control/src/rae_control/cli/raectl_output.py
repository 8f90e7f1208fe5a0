"""What raectl prints for people: tables and sentences. Nothing that came over the wire reaches the
terminal with control characters in it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from datetime import datetime, timezone
from typing import Any

from rae_protocol import models
from rae_protocol.names import TaskState


def plain(value: Any) -> Any:
    """Models inside lists and dicts to plain JSON values."""
    if isinstance(value, models.Model):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return value


def clean(text: object) -> str:
    """Text that cannot steer a terminal; line breaks become spaces."""
    return "".join(c if c.isprintable() else " " for c in str(text))


def ago(moment: datetime | None) -> str:
    """How long ago, in the largest fitting unit."""
    if moment is None:
        return "-"
    seconds = max(0.0, (datetime.now(timezone.utc) - moment).total_seconds())
    for size, unit in ((86400, "d"), (3600, "h"), (60, "min")):
        if seconds >= size:
            return f"{seconds / size:.0f} {unit}"
    return f"{seconds:.0f} s"


def table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> str:
    """Columns as wide as their widest cell."""
    cells = [list(head), *([clean(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(head))]
    return "\n".join(
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip()
        for row in cells
    )


def task_table(tasks: Sequence[models.TaskView], cursor: str | None) -> str:
    """A page of tasks, and how to get the next one."""
    if not tasks:
        return "No task fits."
    text = table(
        ("TASK", "STATE", "KIND", "PRIO", "TRIES", "NODE", "AGE", "REASON"),
        (
            (t.task_id, t.state.value, t.kind, t.priority, t.attempts, t.node_id or "-",
             ago(t.created_at), t.reason or "-")
            for t in tasks
        ),
    )  # fmt: skip
    return f"{text}\n(more: --cursor {cursor})" if cursor else text


def task_detail(task: models.TaskView) -> str:
    """One task with its history."""
    facts: list[tuple[str, object]] = [
        ("task", task.task_id),
        ("state", task.state.value + (f" ({task.reason})" if task.reason else "")),
        ("kind", f"{task.kind}, priority {task.priority}, submitted by {task.submitter}"),
        ("age", f"{ago(task.created_at)}, last change {ago(task.updated_at)} ago"),
        ("counters", f"{count(task.attempts, 'attempt')}, {count(task.failures, 'failure')}, "
                     f"{count(task.interruptions, 'interruption')}"),
    ]  # fmt: skip
    if task.spec is not None:
        facts.append(("params", json.dumps(task.spec.params, ensure_ascii=False)[:300]))
    if task.dropped:
        facts.append(("params", "dropped with the result, to make room for newer tasks"))
    if task.node_id:
        facts.append(("node", f"{task.node_id} {task.slot or ''}"))
    if task.progress is not None:
        facts.append(("progress", f"{task.progress:.0f} % {task.note or ''}"))
    if task.labels:
        facts.append(("labels", ", ".join(f"{k}={v}" for k, v in sorted(task.labels.items()))))
    if task.error:
        facts.append(("error", f"{task.error.code}: {task.error.message}"))
    if task.result is not None:
        facts.append(("result", json.dumps(task.result, ensure_ascii=False)[:300]))
    lines = [f"{name + ':':10} {clean(text).rstrip()}" for name, text in facts]
    lines += [f"{'why:':10} {clean(sentence)}" for sentence in task.why]
    if task.artifacts:
        lines += ["", artifact_table(task.artifacts)]
    if task.history:
        rows = (
            (a.attempt, a.node_id, a.slot, a.state, a.reason or "-", _took(a)) for a in task.history
        )
        lines += ["", table(("TRY", "NODE", "SLOT", "STATE", "REASON", "TOOK"), rows)]
    return "\n".join(lines)


def count(number: int, noun: str) -> str:
    """A number and its noun."""
    return f"{number} {noun}" if number == 1 else f"{number} {noun}s"


def _took(attempt: models.AttemptView) -> str:
    if attempt.ended_at is None:
        return "runs"
    return f"{(attempt.ended_at - attempt.claimed_at).total_seconds():.1f} s"


def why(task: models.TaskView) -> str:
    """Why a task does not run, or what it does instead."""
    if task.why:
        return "\n".join(clean(sentence) for sentence in task.why)
    if task.state.final:
        return f"It has ended: {outcome(task)}"
    return f"It is {task.state.value} on node {clean(task.node_id)}."


def outcome(task: models.TaskView) -> str:
    """How a task stands, in a line or two."""
    text = f"{task.task_id}  {task.state.value}"
    if task.error:
        text += f"  {clean(task.error.code)}: {clean(task.error.message)}"
    elif task.state is TaskState.SUCCEEDED:
        names = ", ".join(clean(item.name) for item in task.artifacts)
        text += f"  on {clean(task.node_id)}" if task.node_id else ""
        text += f"  artifacts: {names}" if names else ""
    elif task.reason:
        text += f"  {clean(task.reason)}"
    return text


def artifact_table(artifacts: Sequence[models.ArtifactView], written: Sequence[str] = ()) -> str:
    """The artifacts, and where they were written to."""
    if not artifacts:
        return "The task has no artifacts."
    text = table(
        ("ARTIFACT", "BYTES", "TYPE", "SHA-256"),
        ((a.name, a.size, a.type, a.sha256) for a in artifacts),
    )
    return "\n".join([text, *(f"written: {clean(path)}" for path in written)])


def node_table(nodes: Sequence[models.NodeView]) -> str:
    """Nodes with their slots and what they do."""
    if not nodes:
        return "No node is online. `raectl nodes list --all` shows every enrolled one."
    return table(
        ("NODE", "STATE", "OWNER", "KIND", "TRUSTED", "FREE", "RUNNING", "SEEN", "REASON"),
        (
            (n.node_id, n.state, n.availability.value if n.availability else "-", n.kind,
             "yes" if n.trusted else "no", f"{len(n.offered)} of {len(n.slots)}", len(n.running),
             ago(n.last_seen), n.reason or n.suspect or ", ".join(n.reasons) or "-")
            for n in nodes
        ),
    )  # fmt: skip


def enrolled(node: models.Enrolled) -> str:
    """The secret and how the node gets it."""
    trust = "trusted" if node.trusted else "not trusted"
    return "\n".join(
        (
            f"node:        {node.node_id} ({node.kind}, {trust})",
            f"secret:      {node.enrolment_secret}",
            *(f"public key:  {key}" for key in node.control_public_keys),
            "The secret is only good for registering; `raectl nodes revoke` ends it.",
        )
    )


def token_table(tokens: Sequence[models.TokenView]) -> str:
    """Tokens; the text of a new one is shown once."""
    if not tokens:
        return "There is no token."
    text = table(
        ("ID", "NAME", "ROLE", "AGE", "REVOKED"),
        (
            (t.token_id, t.name, t.role, ago(t.created_at), "yes" if t.revoked_at else "no")
            for t in tokens
        ),
    )
    return "\n".join([text, *(f"token (shown once): {t.token}" for t in tokens if t.token)])
