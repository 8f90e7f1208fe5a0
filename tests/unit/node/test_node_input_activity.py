"""Which events of input devices are a person's, and which are noise."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rae_node.input.activity import (
    BUTTONS,
    EV_ABS,
    EV_KEY,
    EV_REL,
    EV_SW,
    EV_SYN,
    GAMEPAD,
    KEYBOARD,
    POINTER,
    SENSOR,
    Activity,
    Device,
    kind_of,
)

if TYPE_CHECKING:
    from rae_node.input.activity import AbsInfo, Event

EV_MSC, EV_LED = 4, 17
BTN_SOUTH, BTN_LEFT, BTN_TOUCH, KEY_A, KEY_POWER = 0x130, 0x110, 0x14A, 30, 116
X, Y, RZ, HAT0X = 0, 1, 5, 16
STICK: AbsInfo = (0, -32768, 32767, 16, 128, 0)
CALIBRATE_S = 600.0


def at(kind: int, code: int, value: int) -> Event:
    return (0, 0, kind, code, value)


def keyboard() -> Device:
    return Device("Keys", "seat0", KEYBOARD, {})


def mouse() -> Device:
    return Device("Mouse", "seat0", POINTER, {})


def pad(**axes: AbsInfo) -> Device:
    codes = {"x": X, "y": Y, "rz": RZ, "hat": HAT0X}
    return Device("Pad", "seat0", GAMEPAD, {codes[name]: info for name, info in axes.items()})


@pytest.mark.parametrize(
    ("codes", "properties", "kind"),
    [
        ({EV_KEY: range(1, 100)}, [], KEYBOARD),
        ({EV_KEY: [KEY_POWER]}, [], BUTTONS),
        ({EV_KEY: [BTN_LEFT], EV_REL: [0, 1]}, [], POINTER),
        ({EV_KEY: [BTN_TOUCH], EV_ABS: [X, Y]}, [], POINTER),
        ({EV_KEY: [BTN_LEFT], EV_ABS: [X, Y]}, [], POINTER),
        ({EV_KEY: [BTN_SOUTH], EV_ABS: [X, Y]}, [], GAMEPAD),
        ({EV_ABS: [X]}, [], GAMEPAD),
        ({EV_ABS: [X, Y]}, [6], SENSOR),
    ],
)
def test_a_device_is_what_it_can_send(
    codes: dict[int, list[int]], properties: list[int], kind: str
) -> None:
    assert kind_of(codes, properties) == kind


@pytest.mark.parametrize(
    ("device", "event"),
    [
        (keyboard(), at(EV_KEY, KEY_A, 1)),
        (keyboard(), at(EV_KEY, KEY_A, 0)),
        (mouse(), at(EV_REL, X, 1)),
        (mouse(), at(EV_REL, Y, -1)),
        (mouse(), at(EV_REL, 8, -1)),
        (mouse(), at(EV_KEY, BTN_LEFT, 1)),
        (Device("Screen", "seat0", POINTER, {}), at(EV_ABS, X, 700)),
        (pad(x=STICK, y=STICK), at(EV_KEY, BTN_SOUTH, 1)),
        (pad(x=STICK, y=STICK), at(EV_ABS, X, 20000)),
        (pad(hat=(0, -1, 1, 0, 0, 0)), at(EV_ABS, HAT0X, -1)),
        (Device("Lid", "seat0", BUTTONS, {}), at(EV_SW, 0, 0)),
        (keyboard(), at(EV_SYN, 3, 0)),
    ],
)
def test_a_key_a_pixel_a_click_a_touch_a_push_and_a_lid_count(device: Device, event: Event) -> None:
    assert Activity().used(device, [event], 1.0)


@pytest.mark.parametrize(
    ("device", "event"),
    [
        (keyboard(), at(EV_LED, 1, 1)),
        (keyboard(), at(EV_MSC, 4, 30)),
        (keyboard(), at(EV_SYN, 0, 0)),
        (Device("HDMI", "seat0", BUTTONS, {}), at(EV_SW, 6, 1)),  # the monitor sleeps
        (pad(x=STICK, y=STICK), at(EV_ABS, X, 4000)),
    ],
)
def test_lamps_plugs_and_a_stick_in_its_dead_zone_do_not(device: Device, event: Event) -> None:
    assert not Activity().used(device, [event], 1.0)


def test_a_stick_that_rests_anywhere_counts_only_when_it_is_moved() -> None:
    activity, device = Activity(), pad(x=(15000, *STICK[1:]), y=STICK)
    noise = [at(EV_ABS, X, 15000 + step) for step in (300, -900, 2500, -4000)]
    assert not activity.used(device, noise, 1.0)
    assert activity.used(device, [at(EV_ABS, X, 24000)], 2.0)
    assert not activity.used(device, [at(EV_ABS, X, 23000)], 3.0)


def shake(activity: Activity, device: Device, seconds: float, *moves: Event) -> float:
    """Send the moves in turn, each second; the time at the end."""
    for second in range(round(seconds)):
        activity.used(device, [moves[second % len(moves)]], float(second))
    return seconds


def test_an_axis_that_moves_untouched_is_ignored_by_name_and_a_real_push_still_counts() -> None:
    activity, device = Activity(CALIBRATE_S), pad(x=STICK, y=STICK)
    noise = at(EV_ABS, X, 9000), at(EV_ABS, X, 0)
    assert activity.used(device, [noise[0]], 0.0)
    end = shake(activity, device, CALIBRATE_S + 5, *noise)
    assert activity.ignored == ["axis X of 'Pad'"]
    assert not activity.used(device, [*noise], end + 1)
    assert activity.used(device, [at(EV_ABS, X, 32000)], end + 2)
    assert activity.used(device, [at(EV_ABS, Y, 32000)], end + 3)


def test_both_axes_of_a_worn_stick_are_found_one_by_one() -> None:
    activity, device = Activity(CALIBRATE_S), pad(x=STICK, y=STICK)
    noise = [at(EV_ABS, X, 9000), at(EV_ABS, Y, -9000), at(EV_ABS, X, 0), at(EV_ABS, Y, 0)]
    end = shake(activity, device, CALIBRATE_S + 10, *noise)
    assert activity.ignored == ["axis X of 'Pad'", "axis Y of 'Pad'"]
    assert not activity.used(device, noise, end + 1)


def test_an_axis_that_jumps_from_end_to_end_alone_is_ignored_altogether() -> None:
    activity, device = Activity(CALIBRATE_S), pad(x=STICK, y=STICK)
    end = shake(activity, device, CALIBRATE_S + 5, at(EV_ABS, X, 32000), at(EV_ABS, X, -32000))
    assert activity.ignored == ["axis X of 'Pad'"]
    assert not activity.used(device, [at(EV_ABS, X, 32000)], end + 1)


def wheel() -> Device:
    return pad(x=STICK, rz=(0, 0, 255, 0, 0, 0))


@pytest.mark.parametrize("turn", [3000, 6000, 30000])  # 41 to 412 degrees of 900, to each side
def test_who_turns_a_wheel_and_nothing_else_for_hours_is_seen(turn: int) -> None:
    activity, device = Activity(CALIBRATE_S), wheel()
    for second in range(4 * 3600):
        value = turn * (second % 4 - 1) if second % 4 < 3 else 0  # left, middle, right, middle
        counts = activity.used(device, [at(EV_ABS, X, value)], float(second))
        assert counts or value == 0
    assert activity.ignored == []


def test_a_wheel_that_trembles_untouched_is_ignored_and_a_turn_still_counts() -> None:
    activity, device = Activity(CALIBRATE_S), wheel()
    end = shake(activity, device, CALIBRATE_S + 5, at(EV_ABS, X, 1500), at(EV_ABS, X, 0))
    assert activity.ignored == ["axis X of 'Pad'"]
    assert not activity.used(device, [at(EV_ABS, X, 1500)], end + 1)
    assert activity.used(device, [at(EV_ABS, X, 4000)], end + 2)


def test_a_wheel_at_rest_does_not_count() -> None:
    noise = [at(EV_ABS, X, step) for step in (300, -900, 500)]
    assert not Activity().used(wheel(), noise, 1.0)


def test_who_steers_and_accelerates_for_an_hour_without_a_button_is_never_ignored() -> None:
    activity = Activity(CALIBRATE_S)
    device = pad(x=STICK, y=STICK, rz=(0, 0, 255, 0, 0, 0))
    moves = [at(EV_ABS, X, 20000), at(EV_ABS, RZ, 250), at(EV_ABS, X, -20000), at(EV_ABS, RZ, 0)]
    end = shake(activity, device, 3600, *moves)
    assert activity.ignored == []
    assert activity.used(device, [moves[0]], end + 1)


def test_a_button_now_and_then_keeps_an_axis_from_being_ignored() -> None:
    activity, device = Activity(CALIBRATE_S), pad(x=STICK, y=STICK)
    for second in range(3600):
        moves = [at(EV_ABS, X, 9000 if second % 2 else 0)]
        moves += [at(EV_KEY, BTN_SOUTH, 1)] if second % 300 == 0 else []
        assert activity.used(device, moves, float(second))
    assert activity.ignored == []


def test_a_mouse_that_trembles_alone_is_ignored_until_it_is_really_moved() -> None:
    activity, device = Activity(CALIBRATE_S), mouse()
    assert activity.used(device, [at(EV_REL, X, 1)], 0.0)
    end = shake(activity, device, CALIBRATE_S + 5, at(EV_REL, X, 1), at(EV_REL, X, -1))
    assert activity.ignored == ["motion of 'Mouse'"]
    assert not activity.used(device, [at(EV_REL, Y, 1)], end + 1)
    assert activity.used(device, [at(EV_REL, Y, 5)], end + 2)


def test_a_break_begins_the_calibration_anew() -> None:
    activity, device = Activity(CALIBRATE_S, gap_s=20), pad(x=STICK, y=STICK)
    for second in range(0, 6000, 30):  # longer apart than noise is
        assert activity.used(device, [at(EV_ABS, X, 0 if second % 60 else 9000)], float(second))
    assert activity.ignored == []


def test_what_was_unplugged_comes_back_as_new() -> None:
    activity, device = Activity(CALIBRATE_S), pad(x=STICK, y=STICK)
    end = shake(activity, device, CALIBRATE_S + 5, at(EV_ABS, X, 9000), at(EV_ABS, X, 0))
    activity.forget(device)
    assert activity.ignored == []
    assert activity.used(pad(x=STICK, y=STICK), [at(EV_ABS, X, 9000)], end + 1)


@given(
    st.lists(
        st.tuples(
            st.sampled_from([EV_REL, EV_ABS, EV_LED, EV_SW]),
            st.integers(0, 20),
            st.integers(-40000, 40000),
        ),
        max_size=60,
    ),
    st.floats(0, 1e6),
)
def test_whatever_happened_before_a_key_or_button_counts(
    before: list[tuple[int, int, int]], now: float
) -> None:
    activity, device = Activity(10, 5), pad(x=STICK, y=STICK)
    for number, (kind, code, value) in enumerate(before):
        activity.used(device, [at(kind, code, value)], float(number))
    assert activity.used(device, [at(EV_KEY, BTN_SOUTH, 1)], now)
