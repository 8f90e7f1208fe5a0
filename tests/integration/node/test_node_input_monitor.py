"""The detector's loop and the agent's side of it, over a real socket and recorded device bytes."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from rae_node.errors import NodeError
from rae_node.guard.inputs import InputState
from rae_node.guard.sources.input import InputLink, InputSource
from rae_node.input.activity import GAMEPAD, KEYBOARD, POINTER, SENSOR
from rae_node.input.monitor import GRAIN_S
from rae_protocol.clock import SystemClock
from tests.until import until
from tools.recorded_input import plug, send, unplug

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
