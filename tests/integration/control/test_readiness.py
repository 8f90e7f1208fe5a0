"""Whether control is ready, and what a full disk refuses."""

from __future__ import annotations

import apsw

from rae_control.mesh.mesh import Mesh
from tests.integration.control.harness import ECHO, Api, refused


def test_control_says_whether_it_is_ready_without_a_write(api: Api, mesh: Mesh) -> None:
    wal = mesh.data / "ledger.db-wal"
    before = wal.read_bytes()
    for _ in range(5):
        assert api.client.get("/readyz").status_code == 200
    assert wal.read_bytes() == before


def test_control_is_ready_again_once_the_ledger_takes_a_commit(api: Api, mesh: Mesh) -> None:
    other = apsw.Connection(str(mesh.data / "ledger.db"))
    other.execute("BEGIN IMMEDIATE")
    refused(api.rae("POST", "/tasks", ECHO), "ledger_unavailable")
    refused(api.client.get("/readyz"), "ledger_unavailable")
    other.execute("ROLLBACK")
    other.close()
    mesh.reaper.tick()
    assert api.client.get("/readyz").status_code == 200


def test_a_nearly_full_disk_refuses_submits_and_nothing_else(api: Api, mesh: Mesh) -> None:
    api.join("n1")
    api.submit(ECHO)
    ref = api.take("n1")
    object.__setattr__(mesh.config, "__dict__", {**mesh.config.__dict__, "low_water_bytes": 2**62})
    refused(api.rae("POST", "/tasks", ECHO), "disk_low")
    assert api.result("n1", ref).status_code == 200
