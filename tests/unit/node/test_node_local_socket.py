"""The node's local socket: verbs, refusals, and who may resume."""

from __future__ import annotations

from collections.abc import Iterator

import pytest

from rae_node.config.layout import Layout, socket_path
from rae_node.errors import NodeError
from rae_node.owner.socket import LocalSocket, ask, may_resume
from rae_node.telemetry.log import EventLog


@pytest.fixture
def door(layout: Layout, quiet_log: EventLog) -> Iterator[LocalSocket]:
    verbs = {"status": lambda _, __: {"fine": True}, "resume": lambda _, __: {}}
    door = LocalSocket(socket_path(layout.root), verbs, frozenset({"resume"}), quiet_log)
    door.start()
    yield door
    door.close()


def test_the_local_socket_answers_and_refuses_in_sentences(
    door: LocalSocket, layout: Layout
) -> None:
    assert ask(socket_path(layout.root), {"verb": "status"}) == {"fine": True}
    with pytest.raises(NodeError, match="send one of status, resume"):
        ask(socket_path(layout.root), {"verb": "explode"})


def test_without_an_agent_the_socket_says_how_to_start_one(layout: Layout) -> None:
    with pytest.raises(NodeError, match="rae-node run"):
        ask(socket_path(layout.root), {"verb": "status"})


def test_who_lends_again_is_root_the_agent_or_an_owner() -> None:
    assert may_resume(0, 1000) and may_resume(1000, 1000)
    assert not may_resume(65534, 1000)
