"""Level `unit` on a real kernel: what containers can only assert at the settings of the units."""

from __future__ import annotations

import pytest

from tests.until import until
from tests.vm.guest import NODE, SLICE, Guest, MakeGuest, running_task

MEMORY_MB = 200
# From outside, as root: neither rights nor a /dev without nodes are in the way, only the kernel's
# filter of the unit.
OPEN_IN_CGROUP = """
import errno, os, sys
with open(sys.argv[1] + "/cgroup.procs", "w") as procs:
    procs.write("0")
for path in sys.argv[2:]:
    try:
        os.close(os.open(path, os.O_RDONLY))
        print("opened")
    except OSError as error:
        print(errno.errorcode[error.errno])
"""


@pytest.fixture
def guest(make_guest: MakeGuest) -> Guest:
    # A bomb makes a machine under emulation so slow that the guard would take itself for blind.
    settings = {"source_timeout_sec": 20}
    return make_guest("text", config={"mem_soft_mb": MEMORY_MB}, settings=settings)


def harm(what: str) -> dict[str, object]:
    return {"kind": "python", "params": {"task": "harm", "params": {"what": what, "args": {}}}}


def counts(guest: Guest, file: str) -> dict[str, int]:
    """A file of a cgroup's counters; it counts what happened in those below, too."""
    lines = guest.read(f"{SLICE}/{file}").splitlines()
    return {name: int(value) for name, value in (line.split() for line in lines)}


def works(guest: Guest) -> bool:
    body = guest.body(kind="cli", params={"command": "echo", "args": ["well"]})
    return guest.mesh.rae.wait(guest.mesh.rae.submit([body])[0].task_id, 60).state == "succeeded"


def test_a_memory_bomb_is_ended_by_the_kernel_at_the_limit_of_its_cgroup(guest: Guest) -> None:
    """Contract: C5."""
    assert counts(guest, "memory.events")["oom_kill"] == 0
    bomb = guest.body(max_attempts=1, **harm("memory"))
    view = guest.mesh.rae.wait(guest.mesh.rae.submit([bomb])[0].task_id, 90)
    assert view.error is not None
    assert (view.state, view.error.code) == ("failed", "E_OOM"), view.error
    assert counts(guest, "memory.events")["oom_kill"] > 0
    kernel = guest.vm.run(["journalctl", "-k", "-o", "cat", "--grep", "oom-kill:"]).stdout
    assert "constraint=CONSTRAINT_MEMCG" in kernel
    assert "oom_memcg=/rae.slice/rae-task@" in kernel, kernel
    assert works(guest)


def test_a_fork_bomb_stops_at_pids_max_and_the_node_works_on(guest: Guest) -> None:
    """Contract: C5."""
    # A thousand processes take this machine a minute; what is shown is that the kernel refuses.
    guest.vm.put("/run/systemd/system/rae-task@.service.d/few.conf", "[Service]\nTasksMax=100\n")
    guest.vm.run(["systemctl", "daemon-reload"])
    bomb = running_task(guest, timeout_s=90, max_attempts=1, **harm("fork_bomb"))
    until(
        lambda: counts(guest, f"{bomb.unit}/task/pids.events")["max"] > 0, "a fork is refused", 60
    )
    assert int(guest.read(f"{SLICE}/{bomb.unit}/pids.current")) == 100
    assert guest.mesh.admin.node(NODE).state == "online"
    guest.mesh.rae.cancel(bomb.task_id)
    until(lambda: bomb.unit not in guest.boxes(), "all of it is gone", 20, every_s=0.2)
    assert works(guest)


def test_a_task_s_unit_opens_no_device_of_the_machine(guest: Guest) -> None:
    """Contract: C5."""
    task = running_task(guest)
    devices = ["/dev/input/event0", "/dev/vda", "/dev/tty1", "/dev/dri/card0", "/dev/null"]
    inside = f"{SLICE}/{task.unit}/task"
    opened = guest.vm.run(["python3", "-c", OPEN_IN_CGROUP, inside, *devices]).stdout.split()
    assert opened == ["EPERM"] * 4 + ["opened"]
    outside = guest.vm.run(["python3", "-c", OPEN_IN_CGROUP, "/sys/fs/cgroup", *devices])
    assert outside.stdout.split() == ["opened"] * 5
