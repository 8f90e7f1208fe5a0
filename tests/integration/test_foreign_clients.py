"""Nodes that were written from docs/protocol.md alone, against the real control."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rae_protocol import models
from rae_protocol.names import TaskState
from tools.devmesh import DevMesh
from tools.scenarios.intermediary import EVERY, Intermediary, Request, Script

CLIENTS = Path(__file__).parents[1] / "clients"


def submit_for(mesh: DevMesh, node_id: str, count: int) -> list[str]:
    """Tasks that only this node may do."""
    task = {"kind": "cli", "params": {"command": "true", "args": ["ä", "1"]},
            "requirements": {"nodes": [node_id]}}  # fmt: skip
    return [ref.task_id for ref in mesh.rae.submit([task] * count)]


def run_client(url: str, enrolled: models.Enrolled, command: list[str]) -> list[str]:
    """Its output; the secret goes through the environment, not the arguments."""
    done = subprocess.run(
        [*command[:-1], url, enrolled.node_id, *command[-1].split()],
        env={**os.environ, "SECRET": enrolled.enrolment_secret},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout.split("\n")


def test_the_hmac_client_has_at_most_60_lines_and_the_standard_library_only() -> None:
    lines = (CLIENTS / "hmac_client.py").read_text().splitlines()
    assert len(lines) <= 60
    imported = {
        line.split()[1].split(".")[0] for line in lines if line.startswith(("import", "from"))
    }
    assert imported <= sys.stdlib_module_names


def test_a_client_from_the_protocol_page_registers_polls_acks_and_delivers(
    control: DevMesh,
) -> None:
    enrolled = control.admin.enrol("from-the-page")
    ids = submit_for(control, "from-the-page", 3)
    public = enrolled.control_public_keys[0]
    client = [sys.executable, "-I", str(CLIENTS / "hmac_client.py"), f"{public} 3"]
    output = run_client(control.url, enrolled, client)
    assert [line for line in output if line == "succeeded"] == ["succeeded"] * 3
    for task_id in ids:
        view = control.rae.task(task_id)
        assert (view.state, view.attempts, view.node_id) == (
            TaskState.SUCCEEDED,
            1,
            "from-the-page",
        )
        assert view.result == {"params": {"command": "true", "args": ["ä", "1"]}}
        transitions = [e.to_state for e in control.rae.events(0, task_id=task_id).events]
        assert transitions == ["queued", "leased", "running", "succeeded"]


def test_a_client_with_a_bearer_token_and_four_calls_finishes_tasks(control: DevMesh) -> None:
    """Contract: A3."""
    enrolled = control.admin.enrol("only-curl", kind="bearer")
    ids = submit_for(control, "only-curl", 2)
    output = run_client(control.url, enrolled, [str(CLIENTS / "bearer_client.sh"), "2"])
    assert output == ["succeeded", "succeeded", ""]
    for task_id in ids:
        view = control.rae.task(task_id)
        assert (view.state, view.attempts, view.result) == (
            TaskState.SUCCEEDED, 1, {"by": "curl"},
        )  # fmt: skip


@pytest.mark.parametrize("kind", ["hmac", "bearer"])
def test_a_client_behind_a_portal_waits_for_controls_own_answers(
    control: DevMesh, kind: str
) -> None:
    enrolled = control.admin.enrol(f"portal-{kind}", kind=kind)
    (task_id,) = submit_for(control, enrolled.node_id, 1)
    command = {
        "hmac": [sys.executable, "-I", str(CLIENTS / "hmac_client.py"),
                 f"{(enrolled.control_public_keys or [''])[0]} 1"],
        "bearer": [str(CLIENTS / "bearer_client.sh"), "1"],
    }[kind]  # fmt: skip
    given = [one for one in EVERY if not one.reaches]
    asked: set[str] = set()

    def each_call_once(request: Request) -> bool:
        new = request.path not in asked
        asked.add(request.path)
        return new

    with Intermediary(control.url, Script(each_call_once, given)) as portal:
        assert "succeeded" in run_client(portal.url, enrolled, command)
        assert portal.replaced.total() == len(asked)
    assert control.rae.task(task_id).attempts == 1


@pytest.mark.parametrize("kind", ["hmac", "bearer"])
def test_a_client_with_a_wrong_secret_gets_nowhere(control: DevMesh, kind: str) -> None:
    node_id = f"wrong-{kind}"
    control.admin.enrol(node_id, kind=kind)
    command = {
        "hmac": [sys.executable, "-I", str(CLIENTS / "hmac_client.py")],
        "bearer": [str(CLIENTS / "bearer_client.sh")],
    }[kind]
    extra = ["A" * 43, "1"] if kind == "hmac" else ["1"]
    done = subprocess.run(
        [*command, control.url, node_id, *extra],
        env={**os.environ, "SECRET": "guess"}, capture_output=True, text=True, timeout=60,
        check=False,
    )  # fmt: skip
    assert done.returncode != 0
    assert "401" in done.stderr
    assert control.admin.node(node_id).state == "enrolled"
