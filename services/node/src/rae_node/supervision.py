"""Stable name for `agent/supervisor.py`, which may be older or newer than this release."""

from __future__ import annotations

from rae_node.supervisor.supervisor import main

__all__ = ["main"]
