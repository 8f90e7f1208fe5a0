"""The level of this run, its mesh, tasks that do harm, and their processes."""

from __future__ import annotations

import contextlib
import os
import resource
import shutil
from pathlib import Path
from typing import Any

import pytest

from tools.devmesh import DevMesh, Node
from tools.processes import MeshError, processes_of

TASKS = Path(__file__).parent / "tasks"
CHECKOUT = Path(__file__).resolve().parents[2]
# Set where a test has booted a host for it, see tests/e2e/test_unit_level.py.
LEVEL = os.environ.get("RAE_ESCAPE_LEVEL", "bubblewrap")
DATA = Path(os.environ["RAE_ESCAPE_DATA"]) if LEVEL == "unit" else None
RUN_AS = os.environ.get("RAE_ESCAPE_AS", "").split()
NODE = {
    "isolation": LEVEL, "min_isolation": LEVEL, "task_paths": [str(TASKS)],
    "max_concurrent_cpu": 3, "mem_soft_mb": 512, "workspace_max_mb": 256, "input_max_mb": 64,
    "workspace_max_files": 20_000,
}  # fmt: skip


def make_mesh(**settings: Any) -> DevMesh:
    """A control and one node, at the level of this run."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(1024, hard), hard))  # as systemd starts it
    if DATA is not None:  # the units may write where the workspaces are, and nowhere else
        for entry in set(DATA.iterdir()) - {DATA / "nodes"}:
            shutil.rmtree(entry) if entry.is_dir() else entry.unlink()
        (DATA / "log").mkdir()
        shutil.chown(DATA / "log", DATA.owner(), DATA.group())
    more = {"node": NODE, "run_as": RUN_AS, "data": DATA, **settings}
    return DevMesh(("n1",), **more)


def python(task: str, **params: Any) -> dict[str, Any]:
    return {"kind": "python", "params": {"task": task, "params": params}, "max_attempts": 1}


def harm(what: str, **args: Any) -> dict[str, Any]:
    return python("harm", what=what, args=args)


def running(marker: str) -> list[int]:
    """Processes `sleep MARKER`; not bubblewrap, which has that among its arguments."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with contextlib.suppress(OSError):
                words = (entry / "cmdline").read_bytes().split(b"\0")
                if words[0].endswith(b"sleep") and words[1:2] == [marker.encode()]:
                    found.append(int(entry.name))
    return found


def supervisor(mesh: DevMesh) -> int:
    """The one that runs; as a unit it does not know the mesh's folder."""
    (found,) = processes_of(Path("/supervisor.py")) if LEVEL == "unit" else mesh.supervisors()
    return found


def refused(node: Node, verb: str = "doctor") -> str:
    """What the doctor says, or another verb, whose exit code is then not 0."""
    with pytest.raises(MeshError) as caught:
        node.owner(verb)
    return str(caught.value)
