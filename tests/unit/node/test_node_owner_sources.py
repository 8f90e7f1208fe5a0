"""Who is there: logind's sessions and terminals (B2). Unknown means present."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest

from rae_node import procs
from rae_node.errors import NodeError
from rae_node.guard.sources.logind import LogindSource
from rae_node.guard.sources.tty import TtySource
from tests.unit.node.fakes import until

DESKTOP = {
    "Id": "2", "Class": "user", "Type": "wayland", "State": "active", "Active": "yes",
    "Remote": "no", "TTY": "tty2",
}  # fmt: skip


class Logind:
    """Answers as loginctl does; `ghosts` are sessions that end between the two questions."""

    def __init__(self, *sessions: dict[str, str], ghosts: int = 0) -> None:
        self.sessions, self.ghosts = sessions, ghosts

    def __call__(self, argv: Sequence[str]) -> str:
        ids = [one["Id"] for one in self.sessions]
        if argv[0] == "list-sessions":
            return "".join(f"{one:>7} 1000 anna seat0 tty2\n" for one in ids)
        if self.ghosts:
            self.ghosts -= 1
            raise NodeError("blind", "Failed to get session path: No session '2' known")
        assert list(argv[-len(ids) :]) == ids
        blocks = ("".join(f"{k}={v}\n" for k, v in one.items()) for one in self.sessions)
        return "\n".join(blocks)


@pytest.mark.parametrize(
    ("changes", "code"),
    [
        ({}, "graphical_session"),
        ({"Type": "x11", "State": "online"}, "graphical_session"),
        ({"Type": "mir"}, "graphical_session"),
        ({"Class": "greeter"}, "graphical_session"),
        ({"Active": "no", "State": "online"}, ""),
        ({"State": "closing"}, ""),
        ({"Class": "background"}, ""),
        ({"Class": "manager", "Type": "unspecified"}, ""),
        ({"Type": "tty"}, ""),
        ({"Type": "tty", "Remote": "yes", "TTY": "pts/0"}, ""),
        ({"Type": "tty", "Remote": "yes", "TTY": ""}, "remote_session"),
        ({"Remote": "yes", "Active": "no", "TTY": ""}, "graphical_session"),
    ],
)
def test_b2_an_active_graphical_session_is_the_owner_locked_or_not(
    changes: dict[str, str], code: str
) -> None:
    found = LogindSource(Logind({**DESKTOP, **changes})).read()
    assert (found.present, found.code) == (bool(code), code)


PLAYBOOK = {"Type": "tty", "Remote": "yes", "TTY": "", "Service": "sshd", "Name": "ansible"}


@pytest.mark.parametrize(
    ("changes", "present"),
    [
        ({}, False),
        ({"Name": "julka"}, True),
        ({"Service": "xrdp-sesman"}, True),
        ({"Type": "x11"}, True),
    ],
)
def test_the_operators_playbook_is_nobodys_presence(changes: dict[str, str], present: bool) -> None:
    sessions = Logind({**DESKTOP, **PLAYBOOK, **changes})
    assert LogindSource(sessions, operators=["ansible"]).read().present is present
    assert LogindSource(sessions).read().present


@pytest.mark.parametrize(
    ("listens", "changes", "present"),
    [
        ("@/tmp/.X11-unix/X0", {}, True),
        ("/run/user/1000/wayland-1", {}, True),
        ("/run/user/1001/wayland-1", {}, False),
        ("/run/user/1000/bus", {}, False),
        ("/tmp/.X11-unix/X0", {"Active": "no", "State": "online"}, False),
        ("/tmp/.X11-unix/X0", {"Seat": "", "VTNr": "0"}, False),
    ],
)
def test_b2_a_display_that_was_started_in_a_terminal_session_is_a_graphical_one(
    tmp_path: Path, listens: str, changes: dict[str, str], present: bool
) -> None:
    sockets = tmp_path / "unix"
    sockets.write_text(f"Num RefCount\n0000: 00000002 00000000 00010000 0001 01 99 {listens}\n")
    session = {**DESKTOP, "Type": "tty", "Seat": "seat0", "VTNr": "2", "User": "1000", **changes}
    assert LogindSource(Logind(session), sockets).read().present is present


def test_one_present_session_among_several_is_enough() -> None:
    terminal = {**DESKTOP, "Id": "1", "Type": "tty"}
    assert LogindSource(Logind(terminal, DESKTOP)).read().present
    assert not LogindSource(Logind()).read().present


def test_a_session_that_ends_between_the_questions_is_asked_again_and_only_once() -> None:
    assert LogindSource(Logind(DESKTOP, ghosts=1)).read().present
    with pytest.raises(NodeError):
        LogindSource(Logind(DESKTOP, ghosts=2)).read()


def test_a_session_of_which_something_is_unknown_makes_blind() -> None:
    with pytest.raises(NodeError, match="Active"):
        LogindSource(Logind({**DESKTOP, "Active": ""})).read()
    with pytest.raises(NodeError, match="left out"):
        LogindSource(lambda argv: "2 1000 anna\n" if argv[0] == "list-sessions" else "").read()


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (None, "systemd-logind"),
        ("echo 'Failed to connect to bus' >&2; exit 1", "Failed to connect to bus"),
        ("exec sleep 600", "timed out"),
    ],
)
def test_b2_a_missing_failing_or_hanging_loginctl_makes_blind(
    script: str | None, words: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    if script is not None:
        (tmp_path / "loginctl").write_text(f"#!/bin/sh\nPATH=/usr/bin:/bin\n{script}\n")
        (tmp_path / "loginctl").chmod(0o755)
    with pytest.raises(NodeError, match=words):
        LogindSource().read()


class Later:
    """A clock so many seconds ahead."""

    ahead = 0.0

    def wall(self) -> float:
        return time.time() + self.ahead

    def boot(self) -> float:
        return self.wall()


Terminals = tuple[Path, Later, str]


@pytest.fixture
def terminals(tmp_path: Path) -> Iterator[Terminals]:
    """A /dev with one real pseudo terminal in it, and the terminal's name."""
    master, slave = os.openpty()
    name = os.ttyname(slave)
    (tmp_path / "pts").mkdir()
    (tmp_path / "pts" / "0").symlink_to(name)
    (tmp_path / "pts" / "ptmx").touch()
    yield tmp_path, Later(), name
    os.close(master)
    os.close(slave)


def look(terminals: Terminals, ours: Callable[[int], bool] = lambda _: False) -> bool | None:
    folder, clock, _ = terminals
    return TtySource(lambda: 600, clock, ours=ours, folder=folder).read().present


def test_b2_a_terminal_counts_until_it_was_idle_for_long_enough(terminals: Terminals) -> None:
    _, clock, name = terminals
    stamp = Path(name).stat().st_atime
    clock.ahead = stamp - time.time() + 590
    assert look(terminals)
    clock.ahead = stamp - time.time() + 610
    assert look(terminals) is False
    clock.ahead = -3600
    assert look(terminals), "a stamp of the future is no proof of idleness"


def test_b2_a_virtual_console_counts_too(terminals: Terminals) -> None:
    folder, clock, _ = terminals
    clock.ahead = 10_000
    (folder / "tty3").touch()
    assert look(terminals) is False
    os.utime(folder / "tty3", (clock.wall() - 60, 0))
    assert look(terminals)


def test_where_there_are_no_terminals_to_look_at_the_source_is_blind(tmp_path: Path) -> None:
    with pytest.raises(OSError, match="pts"):
        TtySource(lambda: 600, Later(), ours=lambda _: False, folder=tmp_path).read()


def test_a_terminal_that_only_our_own_work_uses_is_left_out(terminals: Terminals) -> None:
    folder = terminals[0]
    program = "import pty; pty.spawn(['sleep', '600'])"
    with subprocess.Popen([sys.executable, "-c", program], stdin=subprocess.DEVNULL) as made:
        try:
            child = until(lambda: procs.children(made.pid), "the terminal's user")[0]
            name = until(lambda: _terminal(child), "the child's terminal")
            (folder / "pts" / "0").unlink()
            (folder / "pts" / "1").symlink_to(name)
            assert look(terminals)
            assert not look(terminals, lambda device: procs.only_on_terminal({child}, device))
            assert look(terminals, lambda device: procs.only_on_terminal(set(), device))
        finally:
            made.kill()


def _terminal(pid: int) -> Path | None:
    found = Path(f"/proc/{pid}/fd/0").readlink()
    return found if found.parent == Path("/dev/pts") else None
