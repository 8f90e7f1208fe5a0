"""Sessions as logind has them over D-Bus, and which of them count as somebody's presence."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rae_node.errors import NodeError
from rae_node.guard.inputs import InputState, SeatInput
from rae_node.guard.proof import Proof, Surroundings
from rae_node.guard.proofs import Proofs
from rae_node.guard.sessions import Session, presences
from rae_node.guard.sources.login_bus import LoginBus, session_of
from rae_node.guard.sources.logind import LogindSource
from tests.unit.node.harness import ScriptedInput
from tests.until import until
from tools.fake_logind import FakeLogind, session

DESKTOP = Session("2", 1000, "anna", "user", "wayland", "active", True, False, "tty2", "seat0", 2)
PROVEN, UNPROVEN = {"seat0": ""}, {"seat0": "not proven; run the test"}


def codes(one: Session, doubts: dict[str, str], *displays: str, **more: Any) -> list[str]:
    return [found.code for found in presences([one], displays, doubts, **more)]


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, "graphical_session"),
        ({"type": "x11", "state": "online"}, "graphical_session"),
        ({"type": "mir"}, "graphical_session"),
        ({"active": False, "state": "online"}, "graphical_session"),
        ({"locked": True}, "graphical_session"),
        ({"cls": "user-early"}, "graphical_session"),
        ({"cls": "greeter"}, ""),
        ({"cls": "lock-screen"}, ""),
        ({"cls": "background"}, ""),
        ({"cls": "manager", "type": "unspecified"}, ""),
        ({"state": "closing"}, ""),
        ({"type": "tty"}, ""),
    ],
)
def test_a_desktop_counts_for_ever_unless_input_on_its_seat_is_proven_to_be_seen(
    changes: dict[str, Any], code: str
) -> None:
    """Contract: B2."""
    one = replace(DESKTOP, **changes)
    assert codes(one, UNPROVEN) == ([code] if code else [])
    assert codes(one, {}) == ([code] if code else []), "an unknown seat is not proven"
    assert codes(one, PROVEN) == []


def test_a_desktop_that_counts_says_which_and_how_to_prove_input() -> None:
    (found,) = presences([DESKTOP], (), UNPROVEN)
    assert "session 2 of anna on seat0" in str(found) and "run the test" in str(found)


FAR = replace(DESKTOP, type="tty", remote=True, seat="", vt=0, service="sshd", tty="")


@pytest.mark.parametrize(
    ("changes", "present"),
    [
        ({}, True),
        ({"tty": "pts/0"}, True),
        ({"user": "ansible"}, False),
        ({"user": "ansible", "tty": "pts/0"}, True),
        ({"user": "ansible", "service": "login"}, True),
        ({"user": "ansible", "type": "x11"}, True),
        ({"service": "xrdp-sesman"}, False),
        ({"service": "xrdp-sesman", "type": "x11"}, False),
        ({"type": "x11", "remote": False, "service": "unknown"}, True),
        ({"state": "closing"}, False),
    ],
)
def test_somebody_from_afar_counts_while_connected_but_for_the_operators_playbook(
    changes: dict[str, Any], present: bool
) -> None:
    assert bool(codes(replace(FAR, **changes), PROVEN, operators=["ansible"])) is present


def test_without_the_remote_source_every_desktop_without_a_seat_counts() -> None:
    left = replace(FAR, service="xrdp-sesman", type="x11")
    assert codes(left, PROVEN, servers=()) == ["graphical_session"]


@pytest.mark.parametrize(
    ("display", "changes", "present"),
    [
        ("@/tmp/.X11-unix/X0", {}, True),
        ("/run/user/1000/wayland-1", {}, True),
        ("/run/user/1001/wayland-1", {}, False),
        ("/run/user/1000/bus", {}, False),
        ("/tmp/.X11-unix/X0", {"seat": "", "vt": 0}, False),
    ],
)
def test_a_display_that_was_started_in_a_terminal_session_makes_it_a_desktop(
    display: str, changes: dict[str, Any], present: bool
) -> None:
    """Contract: B2."""
    started = replace(DESKTOP, type="tty", **changes)
    assert bool(codes(started, UNPROVEN, display)) is present


# logind over D-Bus


@pytest.fixture
def logind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeLogind]:
    with FakeLogind(tmp_path) as running:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", running.address)
        yield running


@pytest.fixture
def bus(logind: FakeLogind) -> Iterator[LoginBus]:
    found = LoginBus()
    yield found
    found.close()


def test_every_session_is_read_with_what_the_rules_need(logind: FakeLogind, bus: LoginBus) -> None:
    logind.sessions["2"] = session("2", LockedHint=True)
    (found,) = bus.sessions()
    assert found == Session(
        "2", 1000, "anna", "user", "wayland", "active", True, False, "tty2", "seat0", 2,
        "gdm-password", "session-2.scope", "GNOME", True,
    )  # fmt: skip


def test_a_signal_is_news_and_sessions_are_not_read_again_without_one(
    logind: FakeLogind,
) -> None:
    news = threading.Event()
    bus = LoginBus(news.set)
    assert bus.sessions() == [] and bus.sessions() == []
    assert logind.reads == 1
    logind.sessions["2"] = session("2")
    news.clear()
    logind.tell()
    assert news.wait(5), "the signal woke no thread"
    assert [one.id for one in bus.sessions()] == ["2"]
    assert logind.reads == 2
    bus.close()


def test_a_thousand_signals_wake_the_guard_four_times_a_second_and_the_last_one_counts(
    logind: FakeLogind,
) -> None:
    news, woken_at = threading.Event(), list[float]()

    def woken() -> None:
        woken_at.append(time.monotonic())
        news.set()

    with closing(LoginBus(woken)) as bus:
        logind.sessions["2"] = session("2")
        bus.sessions()
        began = time.monotonic()
        for number in range(1000):
            logind.sessions["2"] = session("2", LockedHint=number % 2 == 0)
            logind.tell()
            if news.is_set():  # as the guard does
                news.clear()
                bus.sessions()
        logind.sessions["2"] = session("2", LockedHint=True)
        logind.tell()
        until(lambda: bus.sessions()[0].locked, "the last state")
        allowed = 3 + (time.monotonic() - began) / 0.25
        assert len(woken_at) <= allowed
        assert logind.reads <= allowed


def test_a_session_that_ends_between_two_questions_is_no_trouble(
    logind: FakeLogind, bus: LoginBus
) -> None:
    logind.sessions["2"], logind.ghosts = session("2"), ["7"]
    assert [one.id for one in bus.sessions()] == ["2"]


def test_a_session_of_which_something_is_unknown_makes_blind() -> None:
    said = {key: ("s", value) for key, value in session("2").items() if key != "Active"}
    with pytest.raises(LookupError, match="Active"):
        session_of(said)


def test_control_characters_that_a_user_chose_are_not_repeated() -> None:
    odd = "\x1b[2J\nGNOME"
    found = session_of(
        {
            key: ("s", value)
            for key, value in session("2", Desktop=odd, TTY=odd, Seat=(f"{odd}0", "/")).items()
        }
    )
    assert (found.desktop, found.tty, found.seat) == ("?[2J?GNOME", "?[2J?GNOME", "?[2J?GNOME0")
    assert str(found).isprintable()


def test_a_missing_a_hanging_and_an_ended_bus_make_blind(
    logind: FakeLogind, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Contract: B2."""
    bus = LoginBus()
    bus.sessions()
    logind.end()
    with pytest.raises(NodeError, match="systemctl status dbus"):
        until(lambda: bus.sessions() and None, "blindness")
    (tmp_path / "other").mkdir()
    with FakeLogind(tmp_path / "other") as back:
        monkeypatch.setenv("DBUS_SYSTEM_BUS_ADDRESS", back.address)
        back.sessions["2"] = session("2")
        assert [one.id for one in bus.sessions()] == ["2"], "it does not see again"
        back.silent = True
        with pytest.raises(NodeError, match="does not answer"):
            LoginBus().sessions()
        bus.close()


def test_seats_that_can_show_a_desktop_are_known(logind: FakeLogind, bus: LoginBus) -> None:
    logind.seats = {"seat0": True, "seat1": False}
    assert bus.seats() == ["seat0"]


# The source with all its parts

TYPED = InputState(
    1.0, seats={"seat0": SeatInput(9.0, hands=True)}, devices=(("Keys", "seat0", "keyboard"),)
)
IDLE = replace(TYPED, seats={"seat0": SeatInput(9.0, hands=False)})


class Desk:
    """A source over sessions and input that a test changes."""

    def __init__(self, folder: Path, *, record: bool = True) -> None:
        here = Surroundings("GNOME", "gnome-shell", "6.1", "")
        self.proofs = Proofs(folder / "proofs.json", lambda: 1.0, lambda _: here)
        self.link, self.sessions = ScriptedInput(IDLE), [DESKTOP]
        self.source = LogindSource(
            lambda: self.sessions, link=self.link, proofs=self.proofs, record=record,
            listening=list,
        )  # fmt: skip

    def present(self) -> bool | None:
        return self.source.read().present


@pytest.mark.parametrize("name", [b"\0x\n", b"\0\n", b"\0 \xd0\r"])
def test_a_socket_of_any_name_makes_nothing_blind(tmp_path: Path, name: bytes) -> None:
    desk = LogindSource(
        lambda: [DESKTOP], link=None, proofs=Proofs(tmp_path / "proofs.json", lambda: 1.0)
    )
    with socket.socket(socket.AF_UNIX) as odd:
        odd.bind(name)
        odd.listen()
        assert [one.code for one in desk.read().holders] == ["graphical_session"]


def test_a_login_with_input_before_it_lets_the_desktop_count_by_its_input(tmp_path: Path) -> None:
    desk = Desk(tmp_path)
    desk.sessions = []
    assert not desk.present()
    desk.sessions, desk.link.state = [DESKTOP], TYPED
    assert not desk.present()
    desk.link.state = IDLE
    assert not desk.present()
    desk.link.state = None
    assert desk.present(), "a detector that is gone proves nothing"


def test_an_unlock_with_input_before_it_proves_and_one_without_voids(tmp_path: Path) -> None:
    desk, locked = Desk(tmp_path), replace(DESKTOP, locked=True)
    assert desk.present()
    desk.sessions = [locked]
    assert desk.present(), "locked or not"
    desk.sessions, desk.link.state = [DESKTOP], TYPED
    assert not desk.present()
    desk.sessions, desk.link.state = [locked], IDLE
    assert not desk.present()
    desk.sessions = [DESKTOP]
    assert desk.present(), "unlocked by what was not seen"


def test_who_locks_in_a_loop_gets_ten_notes_a_minute_and_the_count_of_the_others(
    tmp_path: Path,
) -> None:
    notes, clock = list[str](), [0.0]
    sessions = [DESKTOP]
    source = LogindSource(
        lambda: sessions, link=ScriptedInput(IDLE),
        proofs=Proofs(tmp_path / "proofs.json", lambda: 1.0), listening=list,
        note=notes.append, monotonic=lambda: clock[0],
    )  # fmt: skip
    for number in range(30):
        sessions = [replace(DESKTOP, locked=number % 2 == 1)]
        source.read()
    assert len(notes) == 10 and "is open" in notes[0] and "was locked" in notes[-1]
    clock[0] = 60.0
    source.read()
    source.read()
    assert notes[10:] == ["20 more logins, ends, locks and unlocks were left out"]
    sessions = []
    source.read()
    assert "has ended" in notes[-1] and len(notes) == 12


def test_who_only_looks_records_nothing(tmp_path: Path) -> None:
    desk = Desk(tmp_path, record=False)
    desk.link.state = TYPED
    assert desk.present() and desk.proofs.all() == {}


def test_a_proof_of_the_other_seat_does_not_help(tmp_path: Path) -> None:
    desk = Desk(tmp_path, record=False)
    here = Surroundings("GNOME", "gnome-shell", "6.1", "")
    desk.proofs.put("seat1", Proof("seat1", "test", 1.0, here, ("Keys",)))
    assert desk.present()
    desk.proofs.put("seat0", Proof("seat0", "test", 1.0, here, ("Keys",)))
    assert not desk.present()
