"""Who logs in on a lent machine reads once that it is lent; no login fails or changes by it."""

from __future__ import annotations

import configparser
import contextlib
import os
import pty
import select
import shlex
import socket
import subprocess
import termios
import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml
from jeepney import HeaderFields, MessageType, Parser, new_error, new_method_return

from tests.integration.ansible.role import ROLE, included, play

TITLE = "This computer is lent"
VERBS = ["rae-node why", "rae-node help owner", "rae-node pause"]
MARK = "rae-node/login-notice"
# Login shells that read /etc/profile and ~/.profile.
SHELLS = ["bash", "dash"]


@dataclass(frozen=True)
class Machine:
    """What the role made of a machine, and the home of a person there."""

    root: Path
    home: Path

    @property
    def terminal(self) -> Path:
        return self.root / "rae-node.sh"

    @property
    def mark(self) -> Path:
        return self.home / ".local" / "state" / MARK

    def lend(self, word: str) -> None:
        (self.root / "agent" / "enabled").write_text(f"{word}\n", encoding="ascii")

    def environment(self) -> dict[str, str]:
        return {"HOME": str(self.home), "PATH": os.defpath, "TERM": "dumb", "PS1": "$ "}


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The role's own tasks, run against a folder."""
    root = tmp_path_factory.mktemp("machine")
    (root / "agent").mkdir()
    done = play(root / "run", {"desk": {}}, [included("login_notice")], paths_in(root))
    assert done.code == 0, done.text
    return root


@pytest.fixture
def machine(made: Path, tmp_path: Path) -> Machine:
    """A lent machine, and a person who never logged in there."""
    found = Machine(made, tmp_path / "anna")
    found.home.mkdir()
    profile = f"set -eu\n. {found.terminal}\nset +eu\n"
    (found.home / ".profile").write_text(profile, encoding="utf-8")
    found.lend("tested")
    return found


def paths_in(root: Path) -> dict[str, str]:
    return {
        "_node_root": str(root),
        "_node_notice_terminal": f"{root}/rae-node.sh",
        "_node_notice_desktop": f"{root}/rae-node.desktop",
    }


def log_in(argv: Sequence[str], env: Mapping[str, str]) -> str:
    """What a login shell on a terminal prints until it takes a command; it must obey `exit 7`."""
    ours, theirs = pty.openpty()
    attributes = termios.tcgetattr(theirs)
    attributes[3] &= ~termios.ECHO
    termios.tcsetattr(theirs, termios.TCSANOW, attributes)
    os.write(ours, b"echo has begun\n")
    with subprocess.Popen(
        argv, stdin=theirs, stdout=theirs, stderr=theirs, env=dict(env), start_new_session=True
    ) as shell:
        os.close(theirs)
        said = b""
        # Not until it ends: what a terminal still holds at its end may be lost.
        while b"has begun" not in said:
            assert select.select([ours], [], [], 30.0)[0], said
            said += os.read(ours, 4096)
        os.write(ours, b"exit 7\n")
        shell.wait(30.0)
        os.close(ours)
    assert shell.returncode == 7, said
    return said.decode().replace("\r\n", "\n")


@pytest.mark.parametrize("shell", SHELLS)
def test_the_first_login_says_it_and_the_second_does_not(machine: Machine, shell: str) -> None:
    first = log_in([shell, "-l"], machine.environment())
    assert first.count(TITLE) == 1
    assert [verb for verb in VERBS if verb not in first] == []
    assert machine.mark.exists()
    assert TITLE not in log_in([shell, "-l"], machine.environment())


PROFILE = """
set -euC
before="$- $PWD $(umask)"
. {file}
[ "$before" = "$- $PWD $(umask)" ] && echo "the same${{title-}}${{text-}}${{lent-}}${{uid-}} shell"
set +euC
"""


@pytest.mark.parametrize("shell", SHELLS)
def test_a_shell_keeps_its_options_variables_and_folder(machine: Machine, shell: str) -> None:
    profile = PROFILE.format(file=machine.terminal)
    (machine.home / ".profile").write_text(profile, encoding="utf-8")
    said = log_in([shell, "-l"], machine.environment())
    assert TITLE in said
    assert "the same shell" in said


@pytest.mark.parametrize("shell", SHELLS)
@pytest.mark.parametrize("what", ["folder", "mark"])
def test_a_mark_that_cannot_be_made_silences_it_and_stops_no_login(
    machine: Machine, shell: str, what: str
) -> None:
    state = machine.home / "state"
    if what == "folder":
        state.write_text("", encoding="ascii")
    else:
        (state / MARK).parent.mkdir(parents=True)
        (state / MARK).symlink_to("/nonexistent/file")
    environment = {**machine.environment(), "XDG_STATE_HOME": str(state)}
    said = log_in([shell, "-l"], environment)
    assert TITLE not in said
    assert "rae-node" not in said, "nor does it say why not"


def test_the_mark_goes_where_the_person_keeps_such_files(machine: Machine) -> None:
    state = machine.home / "elsewhere"
    said = log_in(["bash", "-l"], {**machine.environment(), "XDG_STATE_HOME": str(state)})
    assert TITLE in said
    assert (state / MARK).exists()
    assert not machine.mark.exists()


@pytest.mark.parametrize("word", ["", "not tested yet"])
def test_a_machine_that_is_not_lent_says_nothing_and_says_it_later(
    machine: Machine, word: str
) -> None:
    machine.lend(word)
    if not word:
        (machine.root / "agent" / "enabled").unlink()
    assert TITLE not in log_in(["bash", "-l"], machine.environment())
    machine.lend("tested")
    assert TITLE in log_in(["bash", "-l"], machine.environment())


@pytest.mark.parametrize(
    "argv", [["bash", "-lc", "true"], ["dash", "-lc", "true"], ["bash", "-li"], ["dash", "-li"]]
)
def test_a_shell_without_a_terminal_says_nothing(machine: Machine, argv: list[str]) -> None:
    """scp, a display manager, a program that reads what a shell prints."""
    done = subprocess.run(
        argv, env=machine.environment(), input="exit\n", capture_output=True, text=True, check=True,
        start_new_session=True,
    )  # fmt: skip
    assert TITLE not in done.stdout + done.stderr
    assert not machine.mark.exists()


@pytest.mark.parametrize("shell", SHELLS)
def test_a_command_at_a_terminal_is_no_login_of_a_person(machine: Machine, shell: str) -> None:
    """`su - anna -c COMMAND`, `sudo -i COMMAND`."""
    obeys = "read -r _; echo has begun; read -r _; exit 7"
    said = log_in([shell, "-lc", obeys], machine.environment())
    assert TITLE not in said
    assert not machine.mark.exists()


@pytest.mark.parametrize(("uid", "says"), [(0, True), (999, False), (1000, True)])
def test_users_of_services_read_nothing(machine: Machine, uid: int, says: bool) -> None:
    box = ["bwrap", "--unshare-user", "--uid", str(uid), "--gid", str(uid), "--dev-bind", "/", "/"]
    assert (TITLE in log_in([*box, "bash", "-l"], machine.environment())) is says


class Notifications:
    """A session bus with a desktop's notifications on it, as D-Bus over a real socket.

    `there`: whether a desktop can show any yet.
    """

    def __init__(self, folder: Path, there: bool = True) -> None:
        self.there = there
        self.shown: list[tuple[Any, ...]] = []
        self.asked = 0
        self._path = folder / "bus"
        self._listener = socket.socket(socket.AF_UNIX)

    @property
    def address(self) -> str:
        return f"unix:path={self._path}"

    def __enter__(self) -> Notifications:
        self._listener.bind(str(self._path))
        self._listener.listen()
        threading.Thread(target=self._accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._listener.shutdown(socket.SHUT_RDWR)
        self._listener.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                with self._listener.accept()[0] as client:
                    self._serve(client)

    def _serve(self, client: socket.socket) -> None:
        said = b""
        while b"BEGIN\r\n" not in said:
            piece = client.recv(4096)
            if not piece:
                return
            said += piece
        # sd-bus says all of it at once; older ones name the user with AUTH, newer ones as DATA.
        for line in said.partition(b"BEGIN\r\n")[0].strip(b"\0").splitlines():
            word = line.partition(b" ")[0]
            named = word == b"DATA" or (word == b"AUTH" and line.count(b" ") > 1)
            refused = b"ERROR" if word == b"NEGOTIATE_UNIX_FD" else b"DATA"
            client.sendall((b"OK " + b"0" * 32 if named else refused) + b"\r\n")
        parser, serial = Parser(), 1
        data = said.partition(b"BEGIN\r\n")[2]
        while data or (data := client.recv(65536)):
            for message in parser.feed(data):
                if message.header.message_type is MessageType.method_call:
                    serial += 1
                    client.sendall(self._reply(message).serialise(serial))
            data = b""

    def _reply(self, message: Any) -> Any:
        member = message.header.fields[HeaderFields.member]
        if member == "Hello":
            return new_method_return(message, "s", (":1.1",))
        self.asked += 1
        if not self.there:
            return new_error(message, "org.freedesktop.DBus.Error.ServiceUnknown", "s", ("none",))
        self.shown.append((member, message.header.fields[HeaderFields.signature], *message.body))
        return new_method_return(message, "u", (1,))


def start_desktop(machine: Machine, bus: Notifications, programs: Path | None = None) -> None:
    """What a desktop does with the file in its autostart folder."""
    entry = configparser.ConfigParser(interpolation=None)
    entry.read(machine.root / "rae-node.desktop")
    environment = {**machine.environment(), "DBUS_SESSION_BUS_ADDRESS": bus.address}
    if programs is not None:
        environment["PATH"] = f"{programs}:{environment['PATH']}"
    subprocess.run(
        shlex.split(entry["Desktop Entry"]["Exec"]), env=environment, check=True, timeout=60,
        stdin=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip


@pytest.fixture
def impatient(tmp_path: Path) -> Path:
    """A folder with a `sleep` that does not wait."""
    folder = tmp_path / "bin"
    folder.mkdir()
    (folder / "sleep").symlink_to("/bin/true")
    return folder


def test_a_desktop_shows_it_once_until_it_is_closed(machine: Machine, tmp_path: Path) -> None:
    with Notifications(tmp_path) as bus:
        start_desktop(machine, bus)
        start_desktop(machine, bus)
    ((member, signature, name, replaces, _, title, text, *rest),) = bus.shown
    assert (member, signature, name, replaces) == ("Notify", "susssasa{sv}i", "RAE Mesh", 0)
    assert title.startswith(TITLE)
    assert [verb for verb in VERBS if verb not in text] == []
    assert rest == [[], {}, 0], "0: it has no end of its own"
    assert TITLE not in log_in(["bash", "-l"], machine.environment())


def test_a_desktop_that_shows_nothing_is_asked_again_and_at_the_next_login(
    machine: Machine, tmp_path: Path, impatient: Path
) -> None:
    with Notifications(tmp_path, there=False) as bus:
        start_desktop(machine, bus, impatient)
        assert bus.asked == 4
        assert not machine.mark.exists()
        bus.there = True
        start_desktop(machine, bus, impatient)
        assert len(bus.shown) == 1


def test_a_desktop_of_a_machine_that_is_not_lent_shows_nothing(
    machine: Machine, tmp_path: Path
) -> None:
    machine.lend("not tested yet")
    with Notifications(tmp_path) as bus:
        start_desktop(machine, bus)
    assert bus.asked == 0


def test_the_removal_takes_both_files_away(tmp_path: Path) -> None:
    root = tmp_path / "machine"
    root.mkdir()
    named = [Path(path) for key, path in paths_in(root).items() if key != "_node_root"]
    absent = yaml.safe_load((ROLE / "tasks" / "absent.yml").read_text("utf-8"))
    # That one task: the others stop units of this machine.
    (task,) = [one for one in absent if one["name"] == "Remove the notices for people who log in"]
    for tasks, there in (([included("login_notice")], True), ([task], False)):
        done = play(tmp_path / "run", {"desk": {}}, tasks, paths_in(root))
        assert done.code == 0, done.text
        assert [path.exists() for path in named] == [there, there]


def test_the_terminal_s_file_is_one_that_any_posix_shell_reads(made: Path) -> None:
    for shell in ("bash --posix", "dash"):
        subprocess.run([*shlex.split(shell), "-n", made / "rae-node.sh"], check=True)
