"""What a person and a monitor see of an agent that runs."""

from __future__ import annotations

import json

from tools.devmesh import DevMesh


def test_the_doctor_finds_nothing_wrong_with_a_dev_node_that_works(mesh: DevMesh) -> None:
    found = json.loads(mesh.nodes["n1"].owner("doctor", "--json"))
    states = {one["name"]: one["state"] for one in found["checks"]}
    assert found["ok"] is True
    assert {states[name] for name in ("control", "clock", "agent", "enrolment")} == {"ok"}
