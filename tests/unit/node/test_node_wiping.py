"""A workspace is wiped whatever it holds."""

from __future__ import annotations

import os
from pathlib import Path

from rae_node.supervisor import process_tree


def test_wiping_follows_no_link_and_minds_neither_depth_nor_modes(tmp_path: Path) -> None:
    precious = tmp_path / "precious"
    precious.mkdir()
    (precious / "file").write_text("keep")
    folder = tmp_path / "workspace"
    folder.mkdir()
    (folder / "link").symlink_to(precious)
    here = os.open(folder, os.O_RDONLY)
    for _ in range(1500):
        os.mkdir("d", dir_fd=here)
        inner = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = inner
    os.close(here)
    closed = folder / "closed"
    closed.mkdir()
    (closed / "file").write_text("x")
    closed.chmod(0)
    process_tree.wipe(str(folder))
    assert not folder.exists() and (precious / "file").read_text() == "keep"
    process_tree.wipe(str(folder))
