"""An ordinary desktop lends: input is seen on a real kernel, at real sessions, by our units."""

from __future__ import annotations

import os
import time

import pytest

from tests.lab import vm_states
from tests.until import until
from tests.vm.desk import BLIND_MS, IDLE_S, STOP_MS, UNIT, Desk, gamepad, sit_down, spread
from tests.vm.guest import KEYS, PYTHON, MakeGuest, running_task, stopped_after_ms

TIMES = int(os.environ.get("RAE_VM_RETURNS", "20"))
DESKTOPS: tuple[vm_states.Name, ...] = ("x11", "wayland")
MOTION, STICK = "2", "3"


@pytest.fixture(params=DESKTOPS)
def desk(make_guest: MakeGuest, request: pytest.FixtureRequest) -> Desk:
    """A desk at which somebody is logged in, with input that is proven to be seen."""
    found = sit_down(make_guest, request.param)
    found.prove()
    return found


@pytest.mark.parametrize("state", DESKTOPS)
def test_a_desktop_counts_for_ever_until_an_unlock_by_a_key_proves_input(
    make_guest: MakeGuest, state: vm_states.Name
) -> None:
    """Contract: B2."""
    desk = sit_down(make_guest, state)
    until(lambda: "input_recent" not in desk.status()["reasons"], "a quiet desk", 60)
    assert desk.status()["reasons"] == ["graphical_session"]
    assert "sudo rae-node detector test" in desk.why() and "alice" in desk.why()
    desk.prove()
    task = desk.work()  # logged in and untouched
    desk.lock(locked=True)
    end = time.monotonic() + 2 * IDLE_S
    until(lambda: time.monotonic() > end, "the screen stays locked for a while", 60)
    assert task.unit in desk.guest.boxes(), "locked and untouched"
    assert desk.status()["reasons"] == []


def test_the_owner_who_comes_back_has_the_machine_within_a_second(desk: Desk) -> None:
    """Contract: B2."""
    qmp = desk.guest.vm.qmp
    with gamepad(desk.guest) as pad:
        ways = {
            "key": (lambda: qmp.key("a"), KEYS),
            "mouse by one pixel": (lambda: qmp.move(1), MOTION),
            "click": (qmp.button, KEYS),
            "button of a gamepad": (pad.press, KEYS),
        }
        found = {name: desk.returns(touch, kinds, TIMES) for name, (touch, kinds) in ways.items()}
    for name, values in found.items():
        print(spread(name, values))
    assert max(map(max, found.values())) <= STOP_MS


def test_a_greeter_alone_works_and_its_first_key_stops_it(make_guest: MakeGuest) -> None:
    desk = sit_down(make_guest, "greeter")
    values = desk.returns(lambda: desk.guest.vm.qmp.key("a"), KEYS, 3)
    print(spread("key at a greeter", values))
    assert max(values) <= STOP_MS


def test_the_test_of_the_detector_proves_input_by_a_key_and_a_movement(
    make_guest: MakeGuest,
) -> None:
    desk = sit_down(make_guest, "x11")
    qmp, said = desk.guest.vm.qmp, []
    command = [PYTHON, "-m", "rae_node", "detector", "test", "--timeout", "20s"]
    with desk.guest.vm.start(command) as asked:
        assert asked.stdout is not None
        for line in asked.stdout:
            said.append(line.strip())
            if line.startswith("Press"):
                qmp.key("shift")
            elif line.startswith("Move the mouse"):
                qmp.move(3)
            elif line.startswith(("Lock", "Unlock")):
                desk.lock(locked=line.startswith("Lock"))
    print("\n".join(said))
    assert asked.returncode == 0 and said[-1].startswith("Proof stored: input on seat0 is seen")
    assert sum("seen by rae-input" in line for line in said) == 2
    assert sum("seen by logind" in line for line in said) == 2
    assert desk.work()


@pytest.mark.parametrize(
    ("trouble", "command"),
    [
        ("killed", f"systemctl kill --signal=KILL {UNIT}"),
        ("hung", f"systemctl kill --signal=STOP {UNIT}"),
        ("stopped", f"systemctl stop {UNIT}"),
        ("without permission", "chmod 600 /dev/input/event*"),
        ("with a folder that it may not read", "chmod 700 /dev/input"),
    ],
)
def test_a_detector_that_is_no_more_stops_the_work_within_two_seconds(
    make_guest: MakeGuest, trouble: str, command: str
) -> None:
    # Nearer to the half second of a real machine than the patience of other tests.
    desk = sit_down(make_guest, "greeter", settings={"source_timeout_sec": 0.8})
    took = desk.stopped_by(command)
    print(f"{trouble}: the task was gone after {took:.0f} ms")
    assert took <= BLIND_MS
    if trouble != "killed":  # systemd has it back within a second
        assert "blind_input" in desk.status()["reasons"]


def test_a_lost_permission_voids_the_proof_and_a_new_one_brings_the_work_back(
    make_guest: MakeGuest,
) -> None:
    desk = sit_down(make_guest, "x11")
    desk.prove()
    desk.guest.vm.run(["sh", "-c", "chmod 600 /dev/input/event*"])
    until(lambda: "blind_input" in desk.status()["reasons"], "blindness", 20)
    assert "group" in desk.why()
    desk.guest.vm.run(["sh", "-c", "chmod 660 /dev/input/event*"])
    until(lambda: "blind_input" not in desk.status()["reasons"], "sight", 20, every_s=0.2)
    assert not desk.proven()
    desk.prove()
    assert desk.work()


def test_a_pad_and_a_keyboard_are_seen_when_they_are_plugged_in_and_out(
    make_guest: MakeGuest,
) -> None:
    desk = sit_down(make_guest, "greeter")
    qmp = desk.guest.vm.qmp
    task = running_task(desk.guest)
    qmp.plug("usb-kbd", "k")
    until(lambda: task.unit not in desk.guest.boxes(), "plugging in stops the work", 20)
    desk.forget(task)
    listed = desk.guest.agent("detector", "status")
    assert "QEMU USB Keyboard" in listed, listed
    values = desk.returns(lambda: qmp.key("a"), KEYS, 2)
    qmp.unplug("k")
    until(lambda: "USB Keyboard" not in desk.guest.agent("detector", "status"), "gone", 20)
    with gamepad(desk.guest) as pad:
        values += desk.returns(pad.press, KEYS, 2)
        values += desk.returns(lambda: pad.send("abs", "ABS_X", 30000), STICK, 1)
    with gamepad(desk.guest, "touch") as screen:
        values += desk.returns(lambda: screen.send("abs", "ABS_X", 700), STICK, 1)
    assert "Lab pad" not in desk.guest.agent("detector", "status")
    assert desk.work(), "unplugging is no presence"
    print(spread("hot-plugged devices", values))
    assert max(values) <= STOP_MS


def test_a_resting_stick_with_noise_is_named_and_raises_no_alarm_once_calibrated(
    make_guest: MakeGuest,
) -> None:
    """Ten minutes, a tenth of each period: the calibration's and the rest's."""
    desk = sit_down(make_guest, "greeter", detector={"calibrate_s": 20, "gap_s": 5})
    with gamepad(desk.guest) as pad:
        began = time.monotonic()
        pad.send("noise", "ABS_X", 9000)  # from now on
        until(
            lambda: "axis X of 'Lab pad'" in desk.guest.agent("detector", "status"),
            "the axis is found and named",
            120,
            every_s=0.5,
        )
        print(f"calibrated after {time.monotonic() - began:.0f} s")
        task = desk.work()
        end = time.monotonic() + 60
        until(
            lambda: time.monotonic() > end or task.unit not in desk.guest.boxes(),
            "ten scaled minutes pass",
            90,
            every_s=0.5,
        )
        assert task.unit in desk.guest.boxes(), desk.why()
        pad.send("abs", "ABS_X", 32000)
        until(lambda: task.unit not in desk.guest.boxes(), "a real push stops it", 20)


def test_nothing_but_hands_disturbs_a_quiet_desk_for_ten_scaled_minutes(
    make_guest: MakeGuest,
) -> None:
    """PRESENCE's list: locked, untouched, an NTP step, a summer's hour, the operator's Ansible."""
    desk = sit_down(make_guest, "x11")
    vm = desk.guest.vm
    desk.prove()
    desk.lock(locked=True)
    task = desk.work()
    end = time.monotonic() + 10 * IDLE_S
    for command in (
        "date -s '+70 minutes'", "date -s '-70 minutes'",
        "ln -sf /usr/share/zoneinfo/Pacific/Kiritimati /etc/localtime", "true",
    ):  # fmt: skip
        vm.run(["sh", "-c", command])
    until(
        lambda: time.monotonic() > end or task.unit not in desk.guest.boxes(),
        "ten scaled minutes pass",
        60,
        every_s=0.5,
    )
    assert task.unit in desk.guest.boxes(), desk.why()
    assert stopped_after_ms(desk.guest, task, lambda: vm.qmp.key("a"), KEYS) <= STOP_MS


def test_no_clock_that_is_set_ahead_shortens_the_quiet_time_after_a_key(
    make_guest: MakeGuest,
) -> None:
    long_s = 30.0
    desk = sit_down(make_guest, "greeter", safety={"idle_required_minutes": long_s / 60})
    desk.guest.vm.qmp.key("a")
    pressed = time.monotonic()
    until(lambda: "input_recent" in desk.status()["reasons"], "the key", 20)
    desk.guest.vm.run(["date", "-s", "+5 hours"])
    desk.guest.vm.suspend()
    end = time.monotonic() + 3
    until(lambda: time.monotonic() > end, "it sleeps for a while")
    desk.guest.vm.wake()
    woken = time.monotonic()
    until(lambda: not desk.status()["reasons"], "quiet", 4 * long_s, every_s=0.5)
    assert time.monotonic() - woken >= long_s - 3, "waking begins the quiet time anew"
    assert time.monotonic() - pressed >= long_s
