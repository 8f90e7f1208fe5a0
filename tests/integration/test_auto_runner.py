"""The scripts of a node's tree start and check a real agent (B4)."""

from __future__ import annotations

import signal
import sys

from tests.harness import MakeMesh
from tests.until import until


def test_auto_runner_is_the_agent_of_its_tree(make_mesh: MakeMesh) -> None:
    """Contract: B4."""
    mesh = make_mesh("n1")
    node = mesh.nodes["n1"]
    node.stop()
    script = node.root / "agent" / "auto_runner.py"
    sets = node.command[node.command.index("--set") :]
    node.command = [sys.executable, str(script), *sets]
    node.start()
    body = {"kind": "cli", "params": {"command": "echo", "args": ["hello"]}}
    view = mesh.rae.wait(mesh.rae.submit([body])[0].task_id, 30)
    assert (view.state.value, view.history[-1].node_id) == ("succeeded", "n1")
    node.signal(signal.SIGTERM)  # the script became the agent: it gets the signal itself
    until(lambda: not node.running, "the agent ends", 20)
    assert node.popen is not None and node.popen.returncode == 0
