"""Names of development nodes."""

from __future__ import annotations

from pathlib import Path

import pytest

from rae_node.config.layout import default_node_id, only_dev_node
from rae_node.errors import NodeError


def test_a_hostname_becomes_a_node_id() -> None:
    assert default_node_id("my_host.local") == "my-host-local-dev"
    assert len(default_node_id("x" * 100)) <= 64
    assert default_node_id("...") == "node-dev"


def test_only_one_node_needs_no_name(tmp_path: Path) -> None:
    with pytest.raises(NodeError, match="--node-id"):
        only_dev_node(tmp_path)
    (tmp_path / "nodes" / "a").mkdir(parents=True)
    assert only_dev_node(tmp_path) == "a"
    (tmp_path / "nodes" / "b").mkdir()
    with pytest.raises(NodeError, match="a, b"):
        only_dev_node(tmp_path)
