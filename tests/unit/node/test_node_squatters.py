"""No other user keeps an agent from starting by a name, lock or path that he took first."""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import subprocess
import sys
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import pytest

from rae_node.agent.startup import AgentLock
from rae_node.config.layout import Layout, socket_path
from rae_node.diagnostics.report import lock_held
from rae_node.errors import NodeError
from rae_node.owner.socket import LocalSocket, ask
from rae_node.telemetry.log import EventLog

ENDPOINT = "http://127.0.0.1:1"
# Another user, who takes an abstract name, and when told to tries to open the agent's lock. Without
# root there is no other user to be: then it takes no name, and is refused.
STRANGER = """
import os, socket, sys
name, file = sys.argv[1:]
root = os.getuid() == 0
if root:
    os.setgroups([]), os.setgid(54321), os.setuid(54321)
    taken = socket.socket(socket.AF_UNIX)
    taken.bind("\\0" + name)
print("taken", flush=True)
sys.stdin.readline()
try:
    assert root
    os.open(file, os.O_RDONLY)
    print("opened", flush=True)
except (PermissionError, AssertionError):
    print("refused", flush=True)
sys.stdin.readline()
"""


@pytest.fixture
def node_id() -> str:
    return uuid.uuid4().hex


def prefix(node_id: str) -> str:
    digest = hashlib.sha256(f"{node_id}\n{ENDPOINT}".encode()).hexdigest()[:32]
    return f"rae-node/{os.getuid()}/{digest}"


def test_an_agent_starts_whoever_took_the_name_that_once_was_its_own(
    layout: Layout, node_id: str
) -> None:
    with socket.socket(socket.AF_UNIX) as taken:
        taken.bind(f"\0{prefix(node_id)}")
        AgentLock(layout, node_id, ENDPOINT).release()


@pytest.fixture
def open_layout() -> Iterator[Layout]:
    """In a place that every user reaches."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        layout = Layout(Path(folder, "node"))
        layout.create()
        (layout.run / "lock").touch(0o644)
        yield layout


@pytest.mark.parametrize("written", ["{prefix}/0", "\n0 0 0 0 0 0 {inode} @{prefix}/0"])
def test_another_user_keeps_no_agent_from_its_name_or_its_lock(
    open_layout: Layout, node_id: str, written: str
) -> None:
    file = open_layout.run / "lock"
    with socket.socket() as ours:  # its number is in /proc/net for all to read
        name = written.format(prefix=prefix(node_id), inode=os.fstat(ours.fileno()).st_ino)
        words = [sys.executable, "-c", STRANGER, name, str(file)]
        with subprocess.Popen(
            words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        ) as other:
            assert other.stdin is not None and other.stdout is not None
            assert other.stdout.readline() == "taken\n"
            lock = AgentLock(open_layout, node_id, ENDPOINT)
            other.stdin.write("open it\n")
            other.stdin.flush()
            assert other.stdout.readline() == "refused\n"
            other.stdin.close()
        lock.release()


def test_this_user_with_a_name_like_the_agents_is_the_same_node(
    layout: Layout, node_id: str
) -> None:
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(f"\0{prefix(node_id)}/another")
        with pytest.raises(NodeError, match=rf"\(process {os.getpid()}\) is node"):
            AgentLock(layout, node_id, ENDPOINT)
    AgentLock(layout, node_id, ENDPOINT).release()


@pytest.mark.parametrize("mode", [None, 0o644, 0o666])
def test_only_the_agents_user_may_open_its_lock(
    layout: Layout, node_id: str, mode: int | None
) -> None:
    file = layout.run / "lock"
    if mode is not None:
        file.touch()
        file.chmod(mode)
    lock = AgentLock(layout, node_id, ENDPOINT)
    assert file.stat().st_mode & 0o777 == 0o600 and lock_held(layout)
    lock.release()


def test_who_holds_the_lock_is_named(layout: Layout, node_id: str) -> None:
    with (layout.run / "lock").open("a") as held:
        fcntl.flock(held, fcntl.LOCK_SH)
        named = rf"\(process {os.getpid()} of user {os.getuid()}\)"
        with pytest.raises(NodeError, match=named):
            AgentLock(layout, node_id, ENDPOINT)


def test_the_socket_of_a_long_path_lies_in_the_agents_own_folder(
    tmp_path: Path, quiet_log: EventLog
) -> None:
    root = tmp_path / ("x" * 120)
    Layout(root).create()
    path = socket_path(root)
    assert path.parent == Layout(root).run
    door = LocalSocket(path, {}, frozenset(), quiet_log)
    try:
        door.start()
        assert ask(path, {"verb": "ping"}) == {}
        door.keep_open()
        assert path.is_socket()
    finally:
        door.close()
    assert not path.exists()
