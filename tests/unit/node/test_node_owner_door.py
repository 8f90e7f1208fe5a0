"""The owner's door stays open, whatever other users of the machine do at it."""

from __future__ import annotations

import socket

import pytest

from rae_node.config.layout import Layout, socket_path
from rae_node.owner import socket as local_socket
from rae_node.owner.socket import LocalSocket
from rae_node.telemetry.log import EventLog
from tests.until import until

STRANGER = 54321  # a uid without a name, which may not resume


def test_a_user_has_a_few_connections_at_once_and_root_always_one_more(
    layout: Layout, quiet_log: EventLog
) -> None:
    door = LocalSocket(socket_path(layout.root), {}, frozenset(), quiet_log)
    try:
        rooms = [door._admit(STRANGER) for _ in range(9)]
        assert rooms == [True] * 8 + [False]
        assert door._admit(STRANGER + 1) and door._admit(0)
        for _ in range(9):
            door._leave(STRANGER)
        assert door._admit(STRANGER)
        others = [door._admit(uid) for uid in range(1000, 1100)]
        assert not all(others) and door._admit(0)
    finally:
        door.close()


def test_who_sends_a_byte_now_and_then_does_not_hold_a_connection_for_ever(
    layout: Layout, quiet_log: EventLog, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(local_socket, "_PATIENCE_S", 0.5)
    door = LocalSocket(socket_path(layout.root), {}, frozenset(), quiet_log)
    door.start()
    try:
        with socket.socket(socket.AF_UNIX) as slow:
            slow.connect(str(socket_path(layout.root)))
            slow.setblocking(False)

            def ended() -> bool:
                try:
                    slow.send(b"x")
                    return b"Not this way" in slow.recv(4096)
                except BlockingIOError:
                    return False
                except OSError:
                    return True

            until(ended, "the end of its time")
    finally:
        door.close()
