"""What a person and a monitor see of an agent that runs."""

from __future__ import annotations

import json
import re
from pathlib import Path

from tests.harness import MakeMesh
from tests.until import until
from tools.devmesh import DevMesh


def test_the_doctor_finds_nothing_wrong_with_a_dev_node_that_works(mesh: DevMesh) -> None:
    found = json.loads(mesh.nodes["n1"].owner("doctor", "--json"))
    states = {one["name"]: one["state"] for one in found["checks"]}
    assert found["ok"] is True
    assert {states[name] for name in ("control", "clock", "agent", "enrolment")} == {"ok"}


def test_no_secret_is_in_the_logs_of_a_node_that_works_and_is_then_refused(
    make_mesh: MakeMesh, tmp_path: Path
) -> None:
    """Contract: C8."""
    file = tmp_path / "agent.jsonl"
    mesh = make_mesh("n1", node={"logging": json.dumps({"level": "info", "path": str(file)})})
    task = mesh.rae.submit([{"kind": "cli", "params": {"command": "true"}}])[0]
    mesh.rae.wait(task.task_id, 30)
    secrets = [mesh.credentials()["admin_token"], mesh.credentials()["submit_token"]]
    secrets += [node["enrolment_secret"] for node in mesh.credentials()["nodes"].values()]
    enrolment = json.loads((mesh.nodes["n1"].root / "agent" / "enrolment.json").read_text())
    secrets.append(enrolment["enrolment_secret"])
    mesh.admin.node_verb("n1", "revoke")
    until(lambda: "control_refused" in file.read_text(), "the node is refused", 30)
    mesh.nodes["n1"].stop()
    shown = file.read_text() + (mesh.data / "log" / "node-n1.out").read_text()
    events = {json.loads(line)["event"] for line in file.read_text().splitlines()}
    assert {"registered", "task_started", "task_ended", "control_refused"} <= events
    assert [secret for secret in secrets if secret in shown] == []
    # Nor a session's token, which is known to the agent alone: nothing looks like one.
    known = shown.replace(str(mesh.data), "").replace(str(tmp_path), "")
    assert re.findall(r"[A-Za-z0-9_+/=-]{40,}", known) == []
