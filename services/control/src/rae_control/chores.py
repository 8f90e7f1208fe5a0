"""Stable name of the function in RQ's jobs, which another release may have queued."""

from __future__ import annotations

from rae_control.maintenance.chores import run

__all__ = ["run"]
