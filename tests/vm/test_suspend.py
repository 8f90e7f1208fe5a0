"""A real suspend to RAM that outlasts the lease of a running task."""

from __future__ import annotations

import time

from tests.until import until
from tests.vm.guest import LEASE_S, NODE, TASKS, Guest, inside, running_task

ASLEEP_S = 20.0
LATE_S = 0.2
WORKDIR = "/opt/rae-node/workdir"


def stamps_of(guest: Guest) -> str:
    return guest.vm.run(["find", WORKDIR, "-name", "stamps"]).stdout.strip()


def test_nothing_of_a_task_runs_on_after_a_suspend_that_outlasted_its_lease(
    vm_text: Guest,
) -> None:
    mesh, guest = vm_text.mesh, vm_text
    assert ASLEEP_S > LEASE_S
    live = {"kind": "python", "params": {"task": "live", "params": {}}}
    task = running_task(guest, **live, requirements={"nodes": [NODE, "elsewhere"]})
    file = until(lambda: stamps_of(guest), "its first stamp", 20)
    mesh.add_node("elsewhere", {"task_paths": [str(TASKS)]})
    mesh.wait_node("elsewhere", "online")
    with inside(guest.vm, "follow.py", file) as follow:
        assert follow.line() == "ready"
        guest.vm.suspend()
        began = time.monotonic()
        view = mesh.rae.wait(task.task_id, ASLEEP_S)
        assert (view.state, view.attempts) == ("succeeded", 2)
        assert view.history[-1].node_id == "elsewhere"
        until(lambda: time.monotonic() - began > ASLEEP_S, "it has slept", ASLEEP_S + 1)
        guest.vm.wake()
        until(lambda: task.unit not in guest.boxes(), "the task is gone", 20)
        lines = follow.rest()
    stamps = [float(line) for line in lines if not line.startswith("slept")]
    (slept,) = [line.split()[1:] for line in lines if line.startswith("slept")]
    asleep, awake = map(float, slept)
    assert awake - asleep >= ASLEEP_S
    assert any(stamp <= asleep for stamp in stamps)
    late_ms = (max(stamps) - awake) * 1000
    print(f"the last sign of life came {late_ms:.0f} ms after waking")
    assert late_ms <= LATE_S * 1000
    after = guest.body(kind="cli", params={"command": "echo", "args": ["awake"]})
    assert mesh.rae.wait(mesh.rae.submit([after])[0].task_id, 60).state == "succeeded"
    ends = [e for e in mesh.rae.events(task_id=task.task_id).events if e.to_state == "succeeded"]
    assert len(ends) == 1
