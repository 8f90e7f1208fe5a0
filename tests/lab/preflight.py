"""Whether this machine can have a lab; what it needs stands in tools/preflight.py."""

from __future__ import annotations

import os
from pathlib import Path

from tools import preflight


class LabError(Exception):
    """The lab cannot do what was asked; the text says why, and what to do."""


def check() -> Path:
    """The cgroup2 tree of a machine that has everything. Raises LabError."""
    os.environ["PATH"] = preflight.PATH
    if lacking := preflight.packages(preflight.missing(["lab"])):
        command = " ".join(preflight.install(lacking))
        raise LabError(f"The lab needs programs that this machine lacks; as root: {command}")
    cgroup, problem = preflight.cgroup_here(), preflight.lab_here()
    if problem is not None or cgroup is None:
        raise LabError(problem)
    return cgroup


def check_vm() -> None:
    """Raises LabError, unless this machine can have virtual ones."""
    os.environ["PATH"] = preflight.PATH
    if lacking := preflight.packages(preflight.missing(["vm"])):
        command = " ".join(preflight.install(lacking))
        raise LabError(f"Virtual machines need what this one lacks; as root: {command}")
    if problem := preflight.vm_here():
        raise LabError(problem)


def check_go() -> None:
    """Raises LabError, unless there is a Go that is new enough."""
    if problem := preflight.go_here():
        raise LabError(problem)
