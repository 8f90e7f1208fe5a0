"""The detector's loop and the agent's side of it, over a real socket and recorded device bytes."""

from __future__ import annotations

import errno
import json
import os
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path

import pytest

from rae_node.guard.inputs import InputState, parse, reading
from rae_node.input.__main__ import listen
from rae_node.input.activity import KEYBOARD, SENSOR, Activity
from rae_node.input.devices import Opened, Watch, load_evdev, name_of, seat_of
from rae_node.input.monitor import SETTLE_S, Monitor, rounded
from tests.until import until
from tools.recorded_input import Recorded, nodes, plug, send, unplug

KEY_A, RELEASE_A, MOVE = (1, 30, 1), (1, 30, 0), (2, 0, 1)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "input"
    found.mkdir()
    return found


def looking(
    socket: Path, folder: Path, open_device: Callable[[str], Recorded],
    listed: Callable[[str], Sequence[str]],
) -> Monitor:  # fmt: skip
    """A detector in this process, which opens devices in a test's own way."""
    return Monitor(
        str(folder), listen(str(socket)), Watch(str(folder)), open_device,
        time.monotonic, Activity(), nodes=listed,
    )  # fmt: skip


def recorded(socket: Path, folder: Path, listed: list[str]) -> Monitor:
    """A detector in this process, for which the folder holds what is listed, gone or not."""
    evdev = load_evdev()
    paths = [str(folder / name) for name in listed]
    return looking(socket, folder, lambda path: Recorded(evdev, path), lambda _: paths)


def hands(loop: Monitor) -> bool:
    """Whether a keyboard or pointer of seat0 was used, as the loop publishes it."""
    return bool(json.loads(loop.state())["seats"]["seat0"]["hands"])


@pytest.mark.parametrize("before", [SENSOR, KEYBOARD])
def test_a_keyboard_that_takes_the_path_of_another_device_is_read(
    tmp_path: Path, folder: Path, before: str
) -> None:
    plug(folder, 0, KEYBOARD, name="Keys")
    old = plug(folder, 1, before, name="Old")
    loop = recorded(tmp_path / "s", folder, listed=["event0", "event1"])
    with closing(loop):
        # As after a suspend: all of USB comes back, in another order, between two looks.
        unplug(old)
        new = plug(folder, 1, KEYBOARD, name="New")
        loop.step(5.0)
        assert ["New", "seat0", KEYBOARD] in json.loads(loop.state())["devices"]
        assert "Old" not in loop.state().decode()
        assert not hands(loop)
        send(new, KEY_A)
        until(lambda: loop.step(0.1) or hands(loop), "the key")


def test_a_sensor_that_stays_is_opened_once(tmp_path: Path, folder: Path) -> None:
    plug(folder, 0, SENSOR, name="Tilt")
    evdev, opened = load_evdev(), list[str]()

    def open_device(path: str) -> Recorded:
        opened.append(path)
        return Recorded(evdev, path)

    loop = looking(tmp_path / "s", folder, open_device, nodes)
    with closing(loop):
        plug(folder, 1, KEYBOARD)
        loop.step(5.0)
    assert [Path(path).name for path in opened] == ["event0", "event1"]


def test_a_device_whose_end_is_read_before_its_path_is_gone_is_looked_for_again(
    tmp_path: Path, folder: Path
) -> None:
    keys = plug(folder, 0, KEYBOARD)
    evdev, ends = load_evdev(), [True]

    class Ending(Recorded):
        def read(self) -> list[object]:
            if ends.pop():
                raise OSError(errno.ENODEV, "No such device")
            return super().read()

    loop = Monitor(
        str(folder), listen(str(tmp_path / "s")), Watch(str(folder)),
        lambda path: Ending(evdev, path) if ends else Recorded(evdev, path),
        time.monotonic, Activity(), nodes=nodes,
    )  # fmt: skip
    settled_at = time.monotonic() + SETTLE_S
    with closing(loop):
        until(lambda: loop.step(0.2) or time.monotonic() > settled_at + 0.5, "the second look")
        send(keys, KEY_A)
        loop.step(1.0)
        assert json.loads(loop.state())["devices"] == []
        until(lambda: loop.step(0.2) or json.loads(loop.state())["devices"], "the device again")


def test_a_device_that_may_not_be_read_from_the_start_makes_blind(
    tmp_path: Path, folder: Path
) -> None:
    plug(folder, 0, KEYBOARD, refused="Permission denied")
    loop = recorded(tmp_path / "s", folder, listed=["event0"])
    with closing(loop):
        until(lambda: loop.step(0.2) or json.loads(loop.state())["blind"], "blindness")


@pytest.mark.parametrize(
    "error",
    [OSError(errno.EIO, "Input/output error"), UnicodeDecodeError("utf-8", b"\xd0", 0, 1, "odd")],
)
def test_a_device_that_cannot_be_opened_for_another_reason_is_named_and_others_are_read(
    tmp_path: Path, folder: Path, error: Exception
) -> None:
    plug(folder, 0, KEYBOARD, name="Broken")
    plug(folder, 1, KEYBOARD, name="Keys")
    evdev = load_evdev()

    def open_device(path: str) -> Recorded:
        if path.endswith("event0"):
            raise error
        return Recorded(evdev, path)

    loop = looking(tmp_path / "s", folder, open_device, nodes)
    with closing(loop):
        until(lambda: loop.step(0.2) or json.loads(loop.state())["blind"], "blindness")
        said = json.loads(loop.state())
        assert "event0 cannot be opened" in said["blind"] and "unplug" in said["blind"]
        assert "group" not in said["blind"]
        assert said["devices"] == [["Keys", "seat0", KEYBOARD]]


class OddName:
    """evdev's C module before a device whose name is no UTF-8, and only that."""

    def ioctl_devinfo(self, _: int) -> tuple[int, int, int, int, str, str, str]:
        return 3, 0, 0, 0, b"Key\xd0".decode(), "", ""

    def ioctl_capabilities(self, _: int) -> dict[int, list[int]]:
        return {1: list(range(1, 100))}

    def ioctl_EVIOCGPROP(self, _: int) -> list[int]:
        return []


def test_a_name_that_is_no_utf8_is_taken_from_sysfs(tmp_path: Path) -> None:
    (tmp_path / "13:64" / "device").mkdir(parents=True)
    (tmp_path / "13:64" / "device" / "name").write_bytes(b"Key\xd0\n")
    assert name_of(OddName(), 0, os.makedev(13, 64), str(tmp_path)) == "Key\ufffd"


def test_a_device_that_cannot_even_be_named_is_closed_again(folder: Path) -> None:
    path = plug(folder, 0, KEYBOARD)
    before = sorted(Path("/proc/self/fd").iterdir())
    with pytest.raises(FileNotFoundError, match="device/name"):  # a pipe is not in sysfs
        Opened(OddName(), str(path))
    assert sorted(Path("/proc/self/fd").iterdir()) == before


def test_a_seat_is_found_beside_a_line_that_is_no_utf8(tmp_path: Path) -> None:
    (tmp_path / "c13:64").write_bytes(b"E:ID_MODEL=\xd0\nE:ID_SEAT=seat1\n")
    assert seat_of(os.makedev(13, 64), str(tmp_path)) == "seat1"


@pytest.mark.parametrize("known", [False, True])
def test_a_device_unplugged_while_the_folder_is_read_blinds_nothing(
    tmp_path: Path, folder: Path, known: bool
) -> None:
    plug(folder, 0, KEYBOARD)
    if known:
        plug(folder, 1, KEYBOARD)
    loop = recorded(tmp_path / "s", folder, listed=["event0", "event1"])
    with closing(loop):
        assert json.loads(loop.state())["blind"] == ""
        if known:
            unplug(folder / "event1")
            loop.step(1.0)
        assert json.loads(loop.state())["blind"] == ""


def test_the_start_counts_only_where_something_could_have_been_used_before() -> None:
    bare = InputState(since=100.0)
    assert not reading(bare, 101.0, float("-inf"), 600).present
    assert reading(replace(bare, devices=(("K", "seat0", "keyboard"),)), 101.0, 0.0, 600).present


def test_control_characters_of_a_devices_name_are_not_repeated() -> None:
    said = {
        "since": 1.0, "blind": "it\rcannot", "ignored": ["axis X of '\x1b[2J'"],
        "seats": {"seat\n0": {"last": 1.0, "hands": False}},
        "devices": [["Keys\x1b[2J" + "y" * 100, "seat\n0", "keyboard"]],
    }  # fmt: skip
    state = parse(json.dumps(said).encode())
    assert (state.blind, state.ignored) == ("it?cannot", ("axis X of '?[2J'",))
    assert list(state.seats) == ["seat?0"]
    ((name, seat, kind),) = state.devices
    assert (name[:9], len(name), seat, kind) == ("Keys?[2Jy", 64, "seat?0", "keyboard")


def test_only_the_group_may_connect(tmp_path: Path) -> None:
    with listen(str(tmp_path / "s")):
        assert (tmp_path / "s").stat().st_mode & 0o777 == 0o660
    with listen(str(tmp_path / "s")):  # what an earlier one left is no obstacle
        pass


@pytest.mark.parametrize(("now", "told"), [(0.0, 0.0), (0.1, 0.5), (0.5, 0.5), (7.51, 8.0)])
def test_a_time_is_rounded_up(now: float, told: float) -> None:
    assert rounded(now) == told
