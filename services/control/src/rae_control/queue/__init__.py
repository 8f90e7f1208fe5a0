"""The queue that operators see. With `maintenance.chores` all that uses RQ and Redis."""

from __future__ import annotations


def not_for_rq_workers(task_id: str) -> None:
    """Stands in each RQ job; an rq worker started on a task lane by mistake ends up here."""
    raise RuntimeError(f"task {task_id} is leased by RAE Mesh, not run by rq workers")
