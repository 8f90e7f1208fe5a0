"""No other user keeps an agent from starting by a name, lock or path that he took first."""

from __future__ import annotations

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
from rae_node.config.layout import Layout

ENDPOINT = "http://127.0.0.1:1"
# Another user, who takes an abstract name, and on a line of input tries to open the agent's lock.
# Without root there is no other user to be: then it takes no name, and is refused.
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
