"""No other user keeps an agent from starting by a name, lock or path that he took first."""

from __future__ import annotations

import fcntl
import hashlib
import os
import socket
import uuid
from pathlib import Path

import pytest

from rae_node.agent.startup import AgentLock
from rae_node.config.layout import Layout, socket_path
from rae_node.diagnostics.report import lock_held
from rae_node.errors import NodeError
from rae_node.owner.socket import LocalSocket, ask
from rae_node.telemetry.log import EventLog

ENDPOINT = "http://127.0.0.1:1"


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
