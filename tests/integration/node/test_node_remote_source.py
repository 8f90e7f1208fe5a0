"""The source `remote` with real processes and connections, and with a recorded /proc."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest

from rae_node.errors import NodeError
from rae_node.guard.policy import Reading
from rae_node.guard.sessions import Session
from rae_node.guard.sources.remote import Names, RemoteSource
from tests.until import until

SERVE = """
import socket, sys
server = socket.create_server((sys.argv[1], 0), family=int(sys.argv[2]),
                              dualstack_ipv6=sys.argv[1] == "::")
print(server.getsockname()[1], flush=True)
held = [server.accept()[0] for _ in range(2)]
sys.stdin.read()
"""
DISPLAY = "import sys; sys.stdin.read()"
STATUS = "Name:\t{name}\nUmask:\t0022\nState:\t{state} (sleeping)\nUid:\t1000\t1000\t1000\t1000\n"


def no_pids() -> Collection[int]:
    return ()


def source(
    sessions: Sequence[Session] = (), ours: Callable[[], Collection[int]] = no_pids,
    proc: Path = Path("/proc"),
) -> RemoteSource:  # fmt: skip
    return RemoteSource(lambda: sessions, ours=ours, proc=proc)


def about(reading: Reading, pid: int) -> list[str]:
    """What a reading says of one process: this machine may have other servers."""
    return [one for one in map(str, reading.holders) if f"process {pid})" in one]


@contextmanager
def named(folder: Path, name: str, *argv: str) -> Iterator[subprocess.Popen[str]]:
    """A Python program that the kernel knows by another name."""
    (folder / name).symlink_to(sys.executable)
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [str(folder / name), "-S", "-c", *argv], stdin=pipe, stdout=pipe, text=True
    ) as running:
        comm = Path(f"/proc/{running.pid}/comm")
        until(lambda: comm.read_text().strip() == name[:15], f"{name} runs", 5)
        try:
            yield running
        finally:
            running.kill()


@pytest.mark.parametrize(
    ("address", "client"), [("127.0.0.1", "127.0.0.1"), ("::1", "::1"), ("::", "127.0.0.1")]
)
def test_a_client_is_present_from_its_connection_to_its_end(
    tmp_path: Path, address: str, client: str
) -> None:
    family = str(int(socket.AF_INET6 if ":" in address else socket.AF_INET))
    with named(tmp_path, "x11vnc", SERVE, address, family) as server:
        assert server.stdout is not None
        port = int(server.stdout.readline())
        looking = source()
        # Its cgroup may be everybody's here, and a client another program's.
        where = f"connected to port {port}"
        assert not any(where in one for one in about(looking.read(), server.pid))
        with socket.create_connection((client, port)) as near:
            (seen,) = [one for one in map(str, looking.read().holders) if where in one]
            peer = f"[{client}]" if ":" in client else client
            assert f"{peer}:{near.getsockname()[1]} is {where}" in seen
            reading = looking.read()
            assert (reading.source, reading.present, reading.code) == (
                "remote", True, "remote_desktop",
            )  # fmt: skip
        until(lambda: not any(where in str(one) for one in looking.read().holders), "it is gone", 5)


def test_a_server_that_begins_between_two_looks_is_seen_by_the_next(tmp_path: Path) -> None:
    looking = source()
    looking.read()
    with named(tmp_path, "anydesk", DISPLAY) as server:
        assert len(about(looking.read(), server.pid)) == 1
    assert about(looking.read(), server.pid) == []


def test_a_program_that_becomes_a_server_is_seen_within_five_looks(tmp_path: Path) -> None:
    (tmp_path / "anydesk").symlink_to(sys.executable)
    become = "import os, sys; sys.stdin.readline(); os.execv(sys.argv[1], [*sys.argv[1:]])"
    argv = [sys.executable, "-S", "-c", become, str(tmp_path / "anydesk"), "-S", "-c", DISPLAY]
    with subprocess.Popen(argv, stdin=subprocess.PIPE, text=True) as server:
        try:
            looking = source()
            for _ in range(3):
                assert about(looking.read(), server.pid) == []
            assert server.stdin is not None
            server.stdin.write("\n")
            server.stdin.flush()
            comm = Path(f"/proc/{server.pid}/comm")
            until(lambda: comm.read_text() == "anydesk\n", "it has its new name", 5)
            assert any(about(looking.read(), server.pid) for _ in range(5))
        finally:
            server.kill()


def test_a_program_that_becomes_a_server_and_listens_is_seen_at_once() -> None:
    names = Names(Path("/proc"))
    for _ in range(3):
        names.look(anew=False)
    own, pid = Path(f"/proc/{os.getpid()}/comm"), str(os.getpid())
    before = own.read_text()
    own.write_text("x11vnc")
    try:
        assert names.look(anew=True)[pid] == "x11vnc"
    finally:
        own.write_text(before.strip())


def test_our_own_work_is_no_presence(tmp_path: Path) -> None:
    with named(tmp_path, "anydesk", DISPLAY) as server:
        assert about(source(ours=lambda: {server.pid}).read(), server.pid) == []
        assert len(about(source().read(), server.pid)) == 1


def test_a_display_that_no_session_accounts_for_is_seen_while_it_listens(tmp_path: Path) -> None:
    number = 7000 + os.getpid() % 1000
    path = f"/tmp/.X11-unix/X{number}"

    def seen() -> list[str]:
        return [one for one in map(str, source().read().holders) if path in one]

    with named(tmp_path, "Xvfb", DISPLAY, f":{number}") as server:
        assert seen() == []
        with socket.socket(socket.AF_UNIX) as display:
            display.bind(f"\0{path}")
            assert seen() == []
            display.listen()
            (holder,) = seen()
            assert holder.startswith(f"Xvfb (uid {os.getuid()}, process {server.pid}) listens")
            session = Session(
                "2", os.getuid(), "anna", "user", "x11", "active", True, False, seat="seat0"
            )
            assert not [one for one in source([session]).read().holders if path in str(one)]
            ours = source(ours=lambda: {server.pid}).read()
            assert not [one for one in ours.holders if path in str(one)]
    assert seen() == []


@pytest.fixture
def proc(tmp_path: Path) -> Path:
    """A recorded /proc with PID 1 in it."""
    add(tmp_path / "proc", 1, "systemd")
    return tmp_path / "proc"


def add(
    proc: Path, pid: int, name: str, argv: str = "", cgroup: str = "/a", state: str = "S"
) -> None:
    folder = proc / str(pid)
    folder.mkdir(parents=True)
    (folder / "comm").write_text(f"{name[:15]}\n")
    (folder / "status").write_text(STATUS.format(name=name, state=state))
    (folder / "cmdline").write_text((argv or name).replace(" ", "\0") + "\0")
    (folder / "cgroup").write_text(f"12:cpu:/x\n0::{cgroup}\n")


def test_a_recorded_server_is_named_with_its_user_and_process(proc: Path) -> None:
    add(proc, 812, "anydesk", "/usr/bin/anydesk --service", "/system.slice/anydesk.service")
    (holder,) = about(source(proc=proc).read(), 812)
    assert holder.startswith("AnyDesk (uid 1000, process 812): ")


def test_what_runs_in_our_slice_or_has_ended_does_not_count(proc: Path) -> None:
    add(proc, 812, "anydesk", cgroup="/rae.slice/rae-task@3.service")
    add(proc, 813, "anydesk", state="Z")
    add(proc, 814, "anydesk")
    (proc / "814" / "status").unlink()
    reading = source(proc=proc).read()
    assert not any(about(reading, pid) for pid in (812, 813, 814))


def test_a_proc_that_hides_other_users_makes_blind_at_once(proc: Path) -> None:
    looking = source(proc=proc)
    for _ in range(6):
        looking.read()
    (proc / "1" / "comm").unlink()
    with pytest.raises(NodeError, match="hidepid") as caught:
        looking.read()
    assert caught.value.rc == "blind"


def test_sessions_that_logind_does_not_list_make_blind() -> None:
    def fails() -> Sequence[Session]:
        raise NodeError("blind", "logind does not answer")

    with socket.socket(socket.AF_UNIX) as display:
        display.bind(f"\0/tmp/.X11-unix/X{8000 + os.getpid() % 1000}")
        display.listen()
        with pytest.raises(NodeError, match="logind"):
            RemoteSource(fails, ours=no_pids).read()
