"""The detector's loop and the agent's side of it, over a real socket and recorded device bytes."""

from __future__ import annotations

import errno
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path

import pytest

from rae_node.errors import NodeError
from rae_node.guard.inputs import InputState, parse, reading
from rae_node.guard.sources.input import InputLink, InputSource
from rae_node.input.__main__ import listen
from rae_node.input.activity import GAMEPAD, KEYBOARD, POINTER, SENSOR, Activity
from rae_node.input.devices import Opened, Watch, load_evdev, name_of, seat_of
from rae_node.input.monitor import GRAIN_S, SETTLE_S, Monitor, rounded
from rae_protocol.clock import SystemClock
from tests.until import until
from tools.recorded_input import Recorded, nodes, plug, send, unplug

KEY_A, RELEASE_A, MOVE = (1, 30, 1), (1, 30, 0), (2, 0, 1)


@dataclass
class Detector:
    """A detector in a process of its own, with the devices of a folder."""

    folder: Path
    socket: Path
    process: subprocess.Popen[bytes]
    news: threading.Event
    link: InputLink

    def last(self, seat: str = "seat0") -> float:
        return self.link.ask().seats[seat].last

    def quiet(self) -> float:
        """Wait until the pause after the last input is over; what it was."""
        last = self.last()
        until(lambda: time.monotonic() - last > 1.6, "a quiet moment")
        return self.last()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    found = tmp_path / "input"
    found.mkdir()
    return found


@pytest.fixture
def detector(tmp_path: Path, folder: Path) -> Iterator[Detector]:
    socket = tmp_path / "s"
    plug(folder, 0, KEYBOARD, name="Keys")
    plug(folder, 1, POINTER, name="Mouse", seat="seat1")
    command = [sys.executable, "-m", "tools.recorded_input", socket, folder]
    with subprocess.Popen(command) as process:
        try:
            until(socket.exists, "the socket")
            news = threading.Event()
            link = InputLink(socket, news.set)
            until(lambda: _answers(link), "an answer")
            yield Detector(folder, socket, process, news, link)
        finally:
            process.kill()


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


def _answers(link: InputLink) -> InputState | None:
    try:
        return link.ask()
    except NodeError:
        return None


def test_a_key_is_pushed_at_once_with_a_time_no_finer_than_half_a_second(
    detector: Detector,
) -> None:
    before = detector.quiet()
    detector.news.clear()
    send(detector.folder / "event0", KEY_A)
    assert detector.news.wait(1.0), "nothing was pushed"
    state = detector.link.ask()
    assert state.seats["seat0"].last > before
    assert state.seats["seat0"].last % GRAIN_S == 0
    assert state.seats["seat0"].last >= time.monotonic() - 2
    assert state.seats["seat0"].hands and not state.seats["seat1"].hands


def test_input_belongs_to_the_seat_of_its_device(detector: Detector) -> None:
    before = detector.last("seat0")
    detector.quiet()
    send(detector.folder / "event1", MOVE)
    until(lambda: detector.last("seat1") > before, "input on seat1")
    assert detector.last("seat0") == before


def test_nothing_that_is_published_tells_one_key_from_another(detector: Detector) -> None:
    answers = []
    for code in (30, 48):
        detector.quiet()
        detector.news.clear()
        send(detector.folder / "event0", (1, code, 1))
        assert detector.news.wait(1.0)
        state = detector.link.ask()
        answers.append((state.blind, state.devices, state.ignored, sorted(state.seats)))
    assert answers[0] == answers[1]


def test_who_types_all_the_time_costs_one_look_a_second(detector: Detector) -> None:
    detector.quiet()
    send(detector.folder / "event0", KEY_A)
    first = until(lambda: detector.last() > detector.link.ask().since and detector.last(), "a key")
    send(detector.folder / "event0", KEY_A, RELEASE_A)
    assert detector.last() == first, "it reads on at once"
    until(lambda: detector.last() > first, "the next look")


def test_a_device_is_seen_when_it_is_plugged_in_pressed_and_gone(detector: Detector) -> None:
    before = detector.quiet()
    pad = plug(detector.folder, 2, GAMEPAD, name="Pad", absolutes={0: (0, -100, 100, 0, 0, 0)})
    until(lambda: detector.last() > before, "somebody who plugs in a pad")
    assert ("Pad", "seat0", GAMEPAD) in detector.link.ask().devices
    before = detector.quiet()
    send(pad, (3, 0, 90))
    until(lambda: detector.last() > before, "a push of the stick")
    before = detector.quiet()
    unplug(pad)
    until(lambda: len(detector.link.ask().devices) == 2, "a pad that is gone")
    assert detector.last() == before, "unplugging is no presence: sleeping monitors do it"


def test_a_sensor_is_not_even_opened(detector: Detector) -> None:
    before = detector.quiet()
    plug(detector.folder, 3, SENSOR, name="Tilt")
    plug(detector.folder, 4, GAMEPAD, name="Pad")
    until(lambda: detector.last() > before, "the pad")
    assert "Tilt" not in str(detector.link.ask().devices)


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


def test_a_device_that_may_not_be_read_makes_blind_after_udev_had_its_time(
    detector: Detector,
) -> None:
    refused = plug(detector.folder, 5, KEYBOARD, refused="Permission denied")
    assert detector.link.ask().blind == ""
    until(lambda: detector.link.ask().blind, "blindness")
    assert "event5" in detector.link.ask().blind and "group" in detector.link.ask().blind
    with pytest.raises(NodeError, match="event5"):
        InputSource(detector.link, lambda: 600, SystemClock()).read()
    for number in range(6, 30):  # others do not make it see for a moment, however many
        unplug(plug(detector.folder, number, KEYBOARD))
        assert "event5" in detector.link.ask().blind
    plug(detector.folder, 6, KEYBOARD)
    until(lambda: len(detector.link.ask().devices) == 3, "the other keyboard")
    assert "event5" in detector.link.ask().blind
    unplug(refused)
    until(lambda: not detector.link.ask().blind, "sight")


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


def test_devices_that_come_and_go_all_the_time_do_not_put_blindness_off(
    detector: Detector,
) -> None:
    plug(detector.folder, 5, KEYBOARD, refused="Permission denied")
    end = time.monotonic() + 5

    def churn() -> str:
        unplug(plug(detector.folder, 6, KEYBOARD))
        return detector.link.ask().blind

    until(lambda: churn() or time.monotonic() > end, "five seconds at most")
    assert time.monotonic() < end


def test_a_detector_that_hangs_is_blind_and_sees_again(detector: Detector) -> None:
    os.kill(detector.process.pid, signal.SIGSTOP)
    # The answer to an earlier question may still be on its way.
    until(lambda: _answers(detector.link) is None, "blindness")
    with pytest.raises(NodeError, match="hangs"):
        detector.link.ask()
    os.kill(detector.process.pid, signal.SIGCONT)
    until(lambda: _answers(detector.link), "an answer")


def test_the_end_of_the_detector_is_news_and_makes_blind(detector: Detector) -> None:
    detector.link.ask()
    detector.news.clear()
    detector.process.kill()
    assert detector.news.wait(2.0), "nothing woke the guard"
    until(lambda: _answers(detector.link) is None, "blindness")
    with pytest.raises(NodeError, match="systemctl status rae-input"):
        detector.link.ask()


def test_the_machine_is_present_after_input_and_after_the_detectors_start(
    detector: Detector,
) -> None:
    source = InputSource(detector.link, lambda: 600, SystemClock())
    found = source.read()
    assert (found.present, found.code) == (True, "input_recent")
    assert "start of the input detector" in str(found.holders)
    detector.quiet()
    assert not InputSource(detector.link, lambda: 1, SystemClock()).read().present


def test_the_start_counts_only_where_something_could_have_been_used_before() -> None:
    bare = InputState(since=100.0)
    assert not reading(bare, 101.0, float("-inf"), 600).present
    assert reading(replace(bare, devices=(("K", "seat0", "keyboard"),)), 101.0, 0.0, 600).present


class Suspending:
    """A clock whose machine sleeps now and then."""

    asleep_s = 0.0

    def wall(self) -> float:
        return time.time() + self.asleep_s

    def boot(self) -> float:
        return time.monotonic() + self.asleep_s

    def monotonic(self) -> float:
        return time.monotonic()


def test_waking_from_a_suspend_begins_the_quiet_time_anew(detector: Detector) -> None:
    detector.quiet()
    clock = Suspending()
    source = InputSource(detector.link, lambda: 1.5, clock)
    assert not source.read().present
    clock.asleep_s = 7200.0
    found = source.read()
    assert found.present and "waking" in str(found.holders[0])


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


def test_more_clients_than_there_can_be_are_turned_away_and_the_others_go_on(
    detector: Detector,
) -> None:
    others = [InputLink(detector.socket) for _ in range(30)]
    answers = [_answers(one) for one in others]
    assert any(answers) and not all(answers)
    assert detector.link.ask()
    for one in others:
        one.close()
    until(lambda: _answers(InputLink(detector.socket)), "room again")


@pytest.mark.parametrize(("now", "told"), [(0.0, 0.0), (0.1, 0.5), (0.5, 0.5), (7.51, 8.0)])
def test_a_time_is_rounded_up(now: float, told: float) -> None:
    assert rounded(now) == told
