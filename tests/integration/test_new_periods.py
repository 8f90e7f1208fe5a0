"""Control starts again with other periods: agents that are registered go by the new ones."""

from __future__ import annotations

from pathlib import Path

from tests.harness import MakeMesh
from tests.integration.stamps import Stamps
from tools.devmesh import FAST_CONTROL

SLOW = {
    "heartbeat_interval_s": 30, "heartbeat_timeout_s": 120, "lease_margin_s": 10,
    "default_lease_ttl_s": 120,
}  # fmt: skip


def test_a_task_after_a_restart_with_shorter_periods_loses_no_attempt(
    make_mesh: MakeMesh, tmp_path: Path
) -> None:
    stamps = Stamps(tmp_path)
    mesh = make_mesh(control=SLOW)
    mesh.add_node("n1", {"task_paths": [str(stamps.tasks)], "heartbeat_interval_sec": 30})
    mesh.wait_node("n1", "online")
    mesh.control.stop()
    mesh.start_control(settings={name: FAST_CONTROL[name] for name in SLOW})
    # Longer than the lease, which only heartbeats at the new pace renew.
    task_id = mesh.rae.submit([stamps.body(8)])[0].task_id
    view = mesh.rae.wait(task_id, 60)
    assert (view.state.value, view.attempts, view.interruptions) == ("succeeded", 1, 0)
    assert stamps.ended(task_id) == [1]
