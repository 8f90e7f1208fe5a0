"""A change of allowlist.d reaches a running mesh: agent and control."""

from __future__ import annotations

from tests.harness import MakeMesh
from tests.until import until
from tools.devmesh import DevMesh

UNAME = "- path: /usr/bin/uname\n  args: [['-s']]\n"


def commands(mesh: DevMesh) -> list[str]:
    """What control believes that the node may run."""
    return mesh.admin.node("n1").capabilities.commands or []


def test_a_new_entry_runs_at_once_and_what_runs_meanwhile_goes_on(make_mesh: MakeMesh) -> None:
    mesh = make_mesh()
    node = mesh.add_node("n1", {"max_concurrent_cpu": 2})
    mesh.wait_node("n1", "online")
    sleeps = {"kind": "cli", "params": {"command": "sleep", "args": ["4"]}}
    asked = {"kind": "cli", "params": {"command": "uname", "args": ["-s"]}}
    long = mesh.rae.submit([sleeps])[0].task_id
    until(lambda: mesh.rae.task(long).state.value == "running", "the long task runs", 20)
    lists = node.root / "agent" / "allowlist.d"
    lists.mkdir(exist_ok=True)
    (lists / "own.yaml").write_text(UNAME)
    until(lambda: "uname" in commands(mesh), "control knows the new command")
    view = mesh.rae.wait(mesh.rae.submit([asked])[0].task_id, 20)
    assert (view.state.value, view.attempts) == ("succeeded", 1)
    view = mesh.rae.wait(long, 20)
    assert (view.state.value, view.attempts) == ("succeeded", 1)
