"""The virtual machines themselves: what tests of input, limits and suspend stand on."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.lab import vm_image, vm_states
from tests.lab.lab import CHECKOUT
from tests.lab.vm import Vm
from tests.until import until
from tests.vm.guest import KEYS, NODE, Guest, MakeGuest, inside, running_task, stopped_after_ms
from tools.processes import processes_of

SEEN = {
    "text": ("user", "tty"), "x11": ("user", "x11"), "wayland": ("user", "wayland"),
    "greeter": ("greeter", "x11"),
}  # fmt: skip
HOLD = """
import sys, time
from tests.lab import vm_image, vm_states
from tests.lab.vm import Vm
with Vm(vm_image.build(print), vm_states.booted(print)) as vm:
    print(vm.folder, flush=True)
    time.sleep(600)
"""


@pytest.fixture(scope="module")
def bare() -> Iterator[Vm]:
    """A machine that has just booted, with nothing of ours."""
    with Vm(vm_image.build(print), vm_states.booted(print)) as vm:
        yield vm


def names(vm: Vm) -> list[str]:
    look = "cat /sys/class/input/event*/device/name"  # one may be gone between the two
    return vm.run(["sh", "-c", look], check=False).stdout.splitlines()


@pytest.mark.parametrize("state", vm_states.NAMES)
def test_a_machine_resumes_in_its_state_and_its_agent_works_in_units(
    make_guest: MakeGuest, state: vm_states.Name
) -> None:
    guest = make_guest(state)
    seen = [(session["Class"], session["Type"]) for session in vm_states.sessions(guest.vm)]
    assert seen == [SEEN[state]]
    assert running_task(guest).unit.startswith("rae-task@")
    assert guest.mesh.admin.node(NODE).isolation == "unit"


def test_the_time_from_a_key_to_the_end_of_a_task_is_one_clock_s(vm_text: Guest) -> None:
    vm, task = vm_text.vm, running_task(vm_text)

    def touch() -> None:
        vm.qmp.move(1)  # it does not count
        vm.qmp.key("a")
        vm.run(["systemctl", "kill", "--signal=SIGKILL", task.unit])

    assert 0 < stopped_after_ms(vm_text, task, touch, KEYS) < 10_000


def test_a_keyboard_is_plugged_in_and_out(bare: Vm) -> None:
    assert "QEMU QEMU USB Keyboard" not in names(bare)
    bare.qmp.plug("usb-kbd", "second")
    until(lambda: "QEMU QEMU USB Keyboard" in names(bare), "it is there", 20, every_s=0.2)
    bare.qmp.unplug("second")
    until(lambda: "QEMU QEMU USB Keyboard" not in names(bare), "it is gone", 20, every_s=0.2)


def test_a_gamepad_makes_the_moves_of_its_script(bare: Vm) -> None:
    with inside(bare, "pad.py", "pad") as pad:
        path = pad.line().removeprefix("ready ")
        with inside(bare, "watch.py", KEYS) as watch:
            assert watch.line() == "ready"
            pad.say("key BTN_SOUTH 1")
            assert f"/dev/input/{json.loads(watch.line())['device']}" == path
    until(lambda: "Lab pad" not in names(bare), "it is gone with its program", 20)


def test_nothing_of_a_machine_outlives_a_process_that_is_killed() -> None:
    command = [sys.executable, "-c", HOLD]
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        folder = Path(owner.stdout.readline().strip())
        try:
            running = processes_of(folder)
            assert {line.split()[0] for line in running.values()} == {"qemu-system-x86_64", "ssh"}
            assert not list(folder.glob("*.qcow2"))
        finally:
            owner.send_signal(signal.SIGKILL)
    until(lambda: not processes_of(folder), "qemu and ssh are gone", 20)
    for file in folder.iterdir():
        file.unlink()
    folder.rmdir()
