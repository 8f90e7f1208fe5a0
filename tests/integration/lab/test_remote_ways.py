"""Each remote way that Debian offers, on a booted host: present while connected, gone after.

The sources look from inside the agent's unit, with its user and all that its file forbids.
"""

from __future__ import annotations

import json
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any

import pytest

from rae_node.guard.sessions import Session
from tests.integration.lab import node
from tests.lab import Host, Lab
from tests.lab.image import DESKTOPS, PYTHON, SUITE
from tests.lab.lab import CHECKOUT
from tests.lab.libraries import libraries
from tests.lab.node_files import UNITS
from tests.until import until

PACKAGES = f"/opt/rae-node/releases/test/lib/python{PYTHON}/site-packages"
LOOK = """
import json, sys, time
from pathlib import Path
sys.path.append(sys.argv[1])
from rae_node.errors import NodeError
from rae_node.guard.proofs import Proofs
from rae_node.guard.sessions import Session
from rae_node.guard.sources.login_bus import LoginBus
from rae_node.guard.sources.logind import LogindSource
from rae_node.guard.sources.remote import RemoteSource

told = {}
made_up = lambda: [Session(**one) for one in told["sessions"]]
proofs = Proofs(Path("/nowhere/proofs.json"), time.time)
sources = {
    "logind": LogindSource(
        LoginBus().sessions, link=None, proofs=proofs, record=False, operators=["ansible"]
    ),
    "remote": RemoteSource(made_up, ours=lambda: ()),
}
for line in sys.stdin:
    told = json.loads(line)
    try:
        seen = sources[told["source"]].read()
        print(json.dumps([seen.present, seen.code, [str(one) for one in seen.holders]]), flush=True)
    except NodeError as error:
        print(json.dumps([None, error.rc, [error.message]]), flush=True)
"""
RFB = b"RFB 003.008\n"
# X.224's request for a connection, for which TLS will do.
RDP = bytes.fromhex("030000130ee000000000000100080003000000")

Seen = tuple[bool | None, str, list[str]]


class Eyes:
    """The sources on a host, in a unit as closed as the agent's; `more`: further settings."""

    def __init__(self, host: Host, *more: str) -> None:
        unit = (UNITS / "rae-node.service").read_text(encoding="utf-8")
        closed = ("Protect", "Restrict", "System", "NoNew", "Capability", "Lock", "Device", "User=")
        lines = [line for line in unit.splitlines() if line.startswith(closed)]
        assert len(lines) > 15
        run = ["systemd-run", "--pipe", "--quiet", "--collect", "--slice=rae.slice",
               *(f"--property={line}" for line in (*lines, *more))]  # fmt: skip
        command = [*run, "/usr/bin/python3", "-c", LOOK, PACKAGES]
        pipe = subprocess.PIPE
        self._looking = subprocess.Popen(host.enter(command), stdin=pipe, stdout=pipe, text=True)

    def look(self, source: str = "remote", sessions: Sequence[Session] = ()) -> Seen:
        """Whether somebody is present, the code, and the holders; None with why it is blind."""
        assert self._looking.stdin is not None and self._looking.stdout is not None
        told = {"source": source, "sessions": [asdict(one) for one in sessions]}
        self._looking.stdin.write(json.dumps(told) + "\n")
        self._looking.stdin.flush()
        line = self._looking.stdout.readline()
        assert line, "the looking program has ended"
        present, code, holders = json.loads(line)
        return present, code, holders

    def wait(self, code: str, what: str, **asked: Any) -> list[str]:
        """Look until the code is this one; the holders."""

        def seen() -> list[Seen]:
            found = self.look(**asked)
            return [found] if found[1] == code else []

        (found,) = until(seen, what, 15)
        return list(found[2])

    def close(self) -> None:
        """End the unit."""
        assert self._looking.stdin is not None and self._looking.stdout is not None
        self._looking.stdin.close()
        self._looking.wait(20)
        self._looking.stdout.close()


@pytest.fixture(scope="module")
def desk() -> Iterator[Host]:
    """A host with remote-desktop servers, of which xrdp runs, and two users."""
    with Lab(packages=DESKTOPS) as lab:
        (host,) = lab.boot("desk")
        node.install(host)
        host.copy(libraries(), PACKAGES)
        for name in ("protocol", "node"):
            host.copy(CHECKOUT / "services" / name / "src", PACKAGES)
        for user in ("anna", "ansible"):
            host.run(["useradd", "--create-home", "--shell=/bin/sh", user])
        host.run(["chpasswd"], stdin="anna:anna\n")
        # Her manager runs without a session, from here on.
        host.put("/var/lib/systemd/linger/anna", "")
        host.run(["systemctl", "start", f"user@{host.run(['id', '-u', 'anna']).stdout.strip()}"])
        # A window manager that does nothing: xrdp ends a session with it.
        host.put("/etc/xrdp/startwm.sh", "#!/bin/sh\nexec sleep infinity\n", mode=0o755)
        yield host


@pytest.fixture(scope="module")
def eyes(desk: Host) -> Iterator[Eyes]:
    """The sources there."""
    looking = Eyes(desk)
    assert looking.look() == (False, "", [])
    yield looking
    looking.close()


@contextmanager
def unit(host: Host, name: str, argv: Sequence[str], *options: str) -> Iterator[None]:
    """A service of anna's, without a session; its processes are gone in the end."""
    host.run(["systemd-run", "--quiet", f"--unit={name}", "--uid=anna", *options, *argv])
    try:
        yield
    finally:
        host.run(["systemctl", "stop", name])


def wait_listening(host: Host, port: int) -> None:
    """Wait until the host listens at a port."""
    shown = ["ss", "--tcp", "--listening", "--numeric"]
    until(lambda: f":{port} " in host.run(shown).stdout, f"port {port} is open", 20)


@contextmanager
def viewer(address: str, port: int) -> Iterator[str]:
    """A VNC viewer that got in; where it is, as the host sees it."""
    with socket.create_connection((address, port), timeout=10) as connection:
        assert connection.recv(12).startswith(b"RFB 003.")
        connection.sendall(RFB)
        offered = connection.recv(16)
        assert 1 in offered[1:], "no password is needed"
        connection.sendall(b"\1")
        assert connection.recv(4) == bytes(4)
        connection.sendall(b"\1")  # and others may look, too
        assert len(connection.recv(24)) == 24
        yield named(connection)


@contextmanager
def rdp_client(address: str) -> Iterator[str]:
    """A client of xrdp at its log-in."""
    with socket.create_connection((address, 3389), timeout=10) as connection:
        connection.sendall(RDP)
        assert connection.recv(4)[:1] == b"\3"
        yield named(connection)


def named(connection: socket.socket) -> str:
    peer, port = connection.getsockname()[:2]
    return f"[{peer}]:{port}" if ":" in peer else f"{peer}:{port}"


@pytest.mark.parametrize("family", ["address", "address6"])
def test_xrdp_counts_while_a_client_is_connected(desk: Host, eyes: Eyes, family: str) -> None:
    with rdp_client(getattr(desk, family)) as peer:
        holders = eyes.wait("remote_desktop", "xrdp's client is seen")
        assert len(holders) == 1
        assert holders[0].startswith("xrdp (uid ")
        assert holders[0].endswith(f": {peer} is connected to port 3389")
    assert eyes.wait("", "it is gone") == []


@pytest.mark.parametrize("server", ["Xorg", "Xvnc"])
def test_a_session_that_xrdps_client_left_behind_does_not_count(
    desk: Host, eyes: Eyes, server: str
) -> None:
    """`xrdp-sesrun` begins one as a client does, and ends."""
    try:
        where = ["-s", "::1"] if SUITE == "bookworm" else []  # later ones have a Unix socket
        desk.run(["xrdp-sesrun", *where, "-p", "anna", "-t", server, "anna"])
        until(lambda: {server, "xrdp-chansrv"} <= processes(desk), "it runs", 20)
        (left,) = sessions_of(desk, "anna")
        assert "Service=xrdp-sesman" in desk.run(["loginctl", "show-session", left]).stdout
        assert eyes.look() == (False, "", [])
        with rdp_client(desk.address):
            eyes.wait("remote_desktop", "xrdp's client is seen")
        eyes.wait("", "it is gone")
        assert server in processes(desk)
    finally:
        for one in sessions_of(desk, "anna"):
            desk.run(["loginctl", "terminate-session", one])
        until(lambda: not sessions_of(desk, "anna"), "the session is gone", 20)


def sessions_of(host: Host, user: str) -> list[str]:
    """Ids of a user's sessions, her manager's left out."""
    lines = host.run(["loginctl", "list-sessions", "--no-legend"]).stdout.splitlines()
    ids = [line.split()[0] for line in lines if line.split()[2] == user]
    shown = ["loginctl", "show-session", "--property=Class", "--value"]
    return [one for one in ids if host.run([*shown, one], check=False).stdout == "user\n"]


def processes(host: Host) -> set[str]:
    return {*host.run(["ps", "-eo", "comm="]).stdout.split()}


def counts_while_a_viewer_is_connected(host: Host, eyes: Eyes, port: int, server: str) -> None:
    with viewer(host.address, port) as peer:
        (holder,) = eyes.wait("remote_desktop", "the viewer is seen")
        assert holder.startswith(server)
        assert holder.endswith(f": {peer} is connected to port {port}")
    eyes.wait("", "it is gone")


def test_xvnc_without_a_session_counts_while_a_viewer_is_connected(desk: Host, eyes: Eyes) -> None:
    xvnc = ["Xtigervnc", ":3", "-SecurityTypes", "None", "-localhost=0"]
    with unit(desk, "xvnc", xvnc):
        wait_listening(desk, 5903)
        assert eyes.look() == (False, "", [])
        counts_while_a_viewer_is_connected(desk, eyes, 5903, "VNC server (uid ")
        # A program that stays on the display is no presence.
        left = "import socket, time; s = socket.socket(1); s.connect('/tmp/.X11-unix/X3')"
        with unit(desk, "left", ["python3", "-c", f"{left}; time.sleep(600)"]):
            assert eyes.look() == (False, "", [])
        assert "Xtigervnc" in processes(desk)


def test_x11vnc_counts_while_a_viewer_is_connected(desk: Host, eyes: Eyes) -> None:
    xvnc = ["Xtigervnc", ":3", "-SecurityTypes", "None", "-localhost"]
    x11vnc = ["x11vnc", "-display", ":3", "-rfbport", "7011", "-forever", "-shared", "-nopw"]
    with unit(desk, "xvnc", xvnc):
        wait_listening(desk, 5903)
        with unit(desk, "x11vnc", x11vnc):
            wait_listening(desk, 7011)
            assert eyes.look() == (False, "", [])
            counts_while_a_viewer_is_connected(desk, eyes, 7011, "x11vnc (uid ")
            assert "x11vnc" in processes(desk)


@contextmanager
def compositor(host: Host) -> Iterator[list[str]]:
    """A headless one under anna's user manager; what begins a unit beside it."""
    folder = f"/run/user/{host.run(['id', '-u', 'anna']).stdout.strip()}"
    user = node.as_user("anna", ["env", f"XDG_RUNTIME_DIR={folder}", "HOME=/home/anna"])
    begin = [*user, "systemd-run", "--user", "--quiet", "--collect"]
    headless = ["WLR_BACKENDS=headless", "WLR_LIBINPUT_NO_DEVICES=1", "WLR_RENDERER=pixman"]
    options = [f"--setenv={word}" for word in headless]
    # While it starts, sway may not end at a gentler signal.
    options += ["--unit=sway", "--property=KillSignal=SIGKILL"]
    display, shown = f"{folder}/wayland-1 ", ["ss", "--unix", "--listening"]
    host.run([*begin, *options, "sway", "-c", "/dev/null"])
    try:
        until(lambda: display in host.run(shown).stdout, "it listens", 20)
        yield [*begin, "--setenv=WAYLAND_DISPLAY=wayland-1"]
    finally:
        host.run([*user, "systemctl", "--user", "stop", "sway"])


def test_a_headless_compositor_counts_while_it_listens(desk: Host, eyes: Eyes) -> None:
    with compositor(desk):
        (holder,) = eyes.wait("unaccounted_display", "the display is seen")
        assert holder.startswith("sway (uid ")
        assert "/wayland-1, and no login session accounts for it" in holder
    eyes.wait("", "it is gone")


def test_wayvnc_counts_while_a_viewer_is_connected(desk: Host, eyes: Eyes) -> None:
    with compositor(desk) as begin:
        uid = int(desk.run(["id", "-u", "anna"]).stdout)
        session = Session("9", uid, "anna", "user", "wayland", "online", False, False, seat="seat0")
        desk.run([*begin, "--property=BindsTo=sway.service", "wayvnc", "0.0.0.0", "5909"])
        wait_listening(desk, 5909)
        assert eyes.look(sessions=[session]) == (False, "", [])
        with viewer(desk.address, 5909) as peer:
            (holder,) = eyes.wait("remote_desktop", "the viewer is seen", sessions=[session])
            assert holder.startswith("wayvnc (uid ")
            assert holder.endswith(f": {peer} is connected to port 5909")
        eyes.wait("", "it is gone", sessions=[session])
    eyes.wait("", "the compositor is gone")


def test_a_virtual_display_counts_while_it_listens(desk: Host, eyes: Eyes) -> None:
    with unit(desk, "xvfb", ["Xvfb", ":4"]):
        (holder,) = eyes.wait("unaccounted_display", "the display is seen")
        assert "Xvfb (uid " in holder and "/tmp/.X11-unix/X4" in holder
    eyes.wait("", "it is gone")


@contextmanager
def ssh(host: Host, user: str) -> Iterator[None]:
    """A command by ssh without a terminal, as a playbook's is."""
    key = (host.folder / "key.pub").read_text()
    home = host.run(["getent", "passwd", user]).stdout.split(":")[5]
    host.put(f"{home}/.ssh/authorized_keys", key)
    host.run(["chown", "-R", f"{user}:", f"{home}/.ssh"])
    command = ["ssh", *host.ssh_options, "-i", host.ssh_key, f"{user}@{host.address}"]
    pipe = subprocess.PIPE
    with subprocess.Popen([*command, "cat"], stdin=pipe, stdout=pipe, text=True) as running:
        assert running.stdin is not None and running.stdout is not None
        running.stdin.write("in\n")
        running.stdin.flush()
        assert running.stdout.readline() == "in\n"
        yield
        running.stdin.close()


def test_an_ssh_session_counts_while_it_is_there(desk: Host, eyes: Eyes) -> None:
    assert eyes.look("logind")[0] is False
    with ssh(desk, "anna"):
        assert eyes.look("logind")[:2] == (True, "remote_session")
        assert eyes.look() == (False, "", []), "sshd is logind's matter"
    eyes.wait("", "it is gone", source="logind")


def test_the_operators_playbook_is_no_presence(desk: Host, eyes: Eyes) -> None:
    with ssh(desk, "ansible"):
        until(lambda: sessions_of(desk, "ansible"), "logind has its session")
        assert eyes.look("logind")[0] is False
        assert eyes.look()[0] is False


def test_a_unit_that_hides_other_users_processes_makes_blind(desk: Host) -> None:
    looking = Eyes(desk, "ProtectProc=invisible")
    try:
        present, code, (why,) = looking.look()
        assert (present, code) == (None, "blind")
        assert "ProtectProc=" in why
    finally:
        looking.close()
