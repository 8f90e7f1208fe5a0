"""Whoever is killed, nothing of a task survives, and nothing of many tasks stays."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rae_protocol.errors import RaeError
from tests.escape.harness import LEVEL, NODE, harm, make_mesh, refused, running, supervisor
from tests.until import until
from tools.devmesh import DevMesh

MARKER = f"86418.{os.getpid()}"  # another checkout may run the same tests now
QUICK = {"kind": "cli", "params": {"command": "true"}}


@pytest.fixture(scope="module")
def mesh_to_kill() -> Iterator[DevMesh]:
    with make_mesh() as mesh:
        yield mesh


def children(pid: int) -> list[int]:
    return [int(one) for one in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def box(mesh: DevMesh) -> int:
    return children(supervisor(mesh))[0]


def unit(mesh: DevMesh) -> int:
    """All that runs in the unit, by systemd; nothing is left to be killed."""
    (name,) = [path.name for path in Path("/sys/fs/cgroup/rae.slice").glob("rae-task@*")]
    subprocess.run(["systemctl", "kill", "--signal=KILL", name], check=True)
    return 0


VICTIMS: dict[str, Callable[[DevMesh], int]] = {
    "agent": lambda mesh: mesh.nodes["n1"].pid,
    "supervisor": supervisor,
    "bubblewrap": box,
    "the box's first process": lambda mesh: children(box(mesh))[0],
}


if LEVEL == "unit":
    VICTIMS["unit"] = unit


@pytest.mark.parametrize("victim", VICTIMS)
def test_nothing_of_a_task_survives_a_kill_and_its_workspace_goes(
    mesh_to_kill: DevMesh, victim: str
) -> None:
    mesh = mesh_to_kill
    body = {**harm("many", marker=MARKER, sessions=3, each=20), "max_attempts": 1}
    task_id = mesh.rae.submit([body])[0].task_id
    until(lambda: len(running(MARKER)) == 3, "the task's processes", 20)
    folder = mesh.nodes["n1"].root / "workdir" / f"{task_id}.1"
    assert folder.is_dir()
    if pid := VICTIMS[victim](mesh):
        os.kill(pid, signal.SIGKILL)
    until(lambda: not running(MARKER), "all of them are dead", 5)
    with contextlib.suppress(RaeError):  # it may have ended already
        mesh.rae.cancel(task_id)
    if victim == "agent":
        mesh.nodes["n1"].kill()
        mesh.nodes["n1"].start()
    until(lambda: not folder.exists(), "the workspace is wiped", 20)
    mesh.wait_node("n1", "online")
    assert mesh.rae.wait(mesh.rae.submit([QUICK])[0].task_id, 30).state == "succeeded"


def links(pid: int) -> list[str]:
    found = []
    for file in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            found.append(str(file.readlink()))
    return found


def mounts() -> list[str]:
    """Where something is mounted, but for what logind has for people and systemd for services."""
    lines = Path("/proc/self/mountinfo").read_text().splitlines()
    others = ("/run/user/", "/run/credentials/")
    return sorted(where for line in lines if not (where := line.split()[4]).startswith(others))


def traces(mesh: DevMesh) -> dict[str, object]:
    """What could be left: of the node, and of the system."""
    agent = mesh.nodes["n1"].pid
    root = mesh.nodes["n1"].root
    own_files = [p for p in root.rglob("*") if "logs" not in p.relative_to(root).parts]
    return {
        # Not by number: a helper of the agent that was slow is replaced.
        "processes": sorted(mesh.leftovers().values()),
        # Its connections to control are a pool of ten at most, which comes and goes.
        "descriptors": sum("socket:" not in link for link in links(agent)),
        "many connections": sum("socket:" in link for link in links(agent)) > 16,
        "files": {str(path.relative_to(root)) for path in own_files},
        "mounts": mounts(),
        "sockets": Path("/proc/net/unix").read_text().count(str(root)),
        "units": sorted(path.name for path in Path("/sys/fs/cgroup/rae.slice").glob("rae-task*")),
        "cgroup": Path(f"/proc/{agent}/cgroup").read_text(),
        "temporary": sorted(path.name for path in Path("/tmp").glob("rae-box-*")),
    }


def at_rest(mesh: DevMesh) -> dict[str, object]:
    """Traces that are the same three times in a row: what the last task needed is closed."""
    looks: list[dict[str, object]] = []

    def same() -> bool:
        looks.append(traces(mesh))
        return len(looks) > 2 and looks[-3] == looks[-2] == looks[-1]

    until(same, "the node rests", 30, every_s=0.5)
    return looks[-1]


def test_after_500_tasks_of_which_50_were_killed_nothing_is_left(mesh_to_kill: DevMesh) -> None:
    mesh = mesh_to_kill
    slow = {"kind": "cli", "params": {"command": "sleep", "args": ["600"]}, "priority": 4}
    warm = mesh.rae.submit([QUICK] * 20)
    assert {mesh.rae.wait(ref.task_id, 60).state for ref in warm} == {"succeeded"}
    until(lambda: not list((mesh.nodes["n1"].root / "workdir").iterdir()), "it rests", 20)
    before = at_rest(mesh)
    doomed = [ref.task_id for ref in mesh.rae.submit([slow] * 50)]
    rest = [ref.task_id for ref in mesh.rae.submit([QUICK] * 450)]
    for task_id in doomed:
        # The first runs after the 450, which come before it.
        until(lambda t=task_id: mesh.rae.task(t).state == "running", "a slow task runs", 300)
        mesh.rae.cancel(task_id)
    assert {mesh.rae.wait(task_id, 60).state for task_id in doomed} == {"cancelled"}
    assert {mesh.rae.wait(task_id, 60).state for task_id in rest} == {"succeeded"}
    try:
        until(lambda: traces(mesh) == before, "everything is as before", 30, every_s=0.5)
    except AssertionError:
        after = traces(mesh)
        changed = [key for key in after if after[key] != before[key]]
        assert {key: (before[key], after[key]) for key in changed} == {}


def test_a_node_that_cannot_make_a_box_refuses_work_and_says_why() -> None:
    with DevMesh((), node=NODE) as mesh:
        node = mesh.add_node("n1")
        mesh.wait_node("n1", "online")
        node.stop()
        file = node.root / "agent" / "config.yaml"
        file.write_text(
            file.read_text().replace("min_isolation: process", "min_isolation: bubblewrap")
        )
        forbidden = [sys.executable, "-m", "tools.guest", "--no-namespaces"]
        node.command = [*forbidden, *node.command]
        node.start()
        mesh.wait_node("n1", "online")
        task_id = mesh.rae.submit([QUICK])[0].task_id
        until(lambda: mesh.admin.node("n1").reasons, "control knows why", 20)
        assert "isolation_too_weak" in mesh.admin.node("n1").reasons
        assert mesh.admin.node("n1").isolation == "process"
        assert "bubblewrap cannot make a box" in node.owner("status")
        told = refused(node)
        assert "min_isolation" in told and "bubblewrap" in told
        assert mesh.rae.task(task_id).state == "queued"
