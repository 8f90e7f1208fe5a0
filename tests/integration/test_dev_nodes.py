"""`rae-node run --dev`: which nodes it makes, and which it does not."""

from __future__ import annotations

import subprocess
import sys

import pytest

from rae_protocol.errors import RemoteError
from tools.devmesh import DevMesh


def run_dev(mesh: DevMesh, node_id: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rae_node", "run", "--dev", "--data", str(mesh.data)]
    return subprocess.run(
        [*command, "--node-id", node_id], capture_output=True, text=True, timeout=60, check=False
    )


@pytest.mark.parametrize("name", ["two words", "../n9", "enrol", "/"])
def test_a_name_that_no_node_can_have_makes_no_folder(mesh: DevMesh, name: str) -> None:
    before = {path.name for path in mesh.data.iterdir()}
    done = run_dev(mesh, name)
    assert done.returncode == 1
    assert "--node-id" in done.stderr and "change it" in done.stderr
    assert {path.name for path in (mesh.data / "nodes").iterdir()} == {"n1", "n2"}
    assert {path.name for path in mesh.data.iterdir()} == before


def test_a_revoked_node_is_enrolled_again_by_an_operator_alone(mesh: DevMesh) -> None:
    mesh.admin.enrol("n7")
    mesh.admin.node_verb("n7", "revoke")
    done = run_dev(mesh, "n7")
    assert done.returncode == 1
    assert "raectl nodes enrol n7" in done.stderr
    assert mesh.admin.node("n7").state == "revoked"


@pytest.mark.parametrize("verb", ["resume", "drain"])
def test_a_revoked_node_is_not_resumed_or_drained(mesh: DevMesh, verb: str) -> None:
    mesh.admin.enrol("n8")
    mesh.admin.node_verb("n8", "revoke")
    with pytest.raises(RemoteError) as refusal:
        mesh.admin.node_verb("n8", verb)
    assert refusal.value.rc == "node_revoked"


def test_a_dry_run_names_the_sources_that_the_node_does_not_read(mesh: DevMesh) -> None:
    assert "guard_sources in config.yaml leaves out logind" in mesh.nodes["n1"].owner("dry-run")
