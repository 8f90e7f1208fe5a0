"""What tests of leases share."""

from __future__ import annotations

from tools.devmesh import SCALE, DevMesh

TTL = 120 / SCALE


def state(mesh: DevMesh, task_id: str) -> str:
    return mesh.admin.task(task_id).state.value
