"""One agent for each root and each name."""

from __future__ import annotations

import os
import uuid
from pathlib import Path

import pytest

from rae_node.agent import startup
from rae_node.config.layout import Layout
from rae_node.errors import NodeError


def test_no_agent_takes_the_lock_of_another_user_s_agent(layout: Layout) -> None:
    if os.getuid() == 0:
        os.chown(layout.run, 4711, 4711)
    else:
        layout.run.rmdir()
        layout.run.symlink_to("/usr")  # root's
    with pytest.raises(NodeError, match="systemctl start rae-node") as refused:
        startup.AgentLock(layout, "n1", "http://127.0.0.1:1")
    assert refused.value.rc == "not_its_user"
    assert not (layout.run / "lock").exists()


def test_a_second_agent_is_refused_by_root_and_by_name(tmp_path: Path, layout: Layout) -> None:
    name = uuid.uuid4().hex
    lock = startup.AgentLock(layout, name, "http://127.0.0.1:1")
    with pytest.raises(NodeError, match="Another agent serves"):
        startup.AgentLock(layout, "other", "http://127.0.0.1:1")
    other = Layout(tmp_path / "other")
    other.create()
    with pytest.raises(NodeError, match="Another agent on this machine"):
        startup.AgentLock(other, name, "http://127.0.0.1:1")
    lock.release()
    startup.AgentLock(layout, name, "http://127.0.0.1:1").release()
