"""What control keeps is for its user alone, and no other user can write a node's files.

Whatever the umask and the folder's mode.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.harness import MakeMesh
from tests.until import until
from tools.devmesh import DevMesh

CLI = {"kind": "cli", "params": {"command": "true"}}


@pytest.fixture
def open_folder(tmp_path: Path) -> Iterator[Path]:
    """A folder that everybody may read, and a umask that takes nothing away."""
    data = tmp_path / "data"
    before = os.umask(0)
    try:
        data.mkdir(mode=0o755)
        yield data
    finally:
        os.umask(before)


def readable(data: Path) -> list[str]:
    """What others can open or list; what lies in a closed folder they cannot."""
    found, folders = [], [data]
    while folders:
        for path in folders.pop().iterdir():
            if path.lstat().st_mode & (stat.S_IRWXG | stat.S_IRWXO) and not path.is_symlink():
                found.append(str(path.relative_to(data)))
                if path.is_dir():
                    folders.append(path)
    return sorted(found)


def work(mesh: DevMesh) -> None:
    mesh.rae.upload_blob(b"somebody's input")
    mesh.rae.submit([CLI])
    until(lambda: list(mesh.data.glob("redis/appendonlydir/*")), "the queue is written")
    assert (mesh.data / "ledger.db-wal").exists()


def test_nothing_is_readable_to_others_under_a_umask_of_0(
    open_folder: Path, make_mesh: MakeMesh
) -> None:
    mesh = make_mesh(data=open_folder)
    work(mesh)
    assert readable(open_folder) == []
    assert stat.S_IMODE(open_folder.stat().st_mode) == 0o755  # the folder itself was somebody's


def test_what_was_left_open_is_closed_at_the_next_start(
    open_folder: Path, make_mesh: MakeMesh
) -> None:
    mesh = make_mesh(data=open_folder)
    work(mesh)
    mesh.control.stop()
    (open_folder / "ledger.db-wal").touch()  # as a kill leaves it behind
    (open_folder / "ledger.db.v3.bak").write_text("an old copy")
    for path in open_folder.rglob("*"):
        path.chmod(0o755 if path.is_dir() else 0o644)
    assert {"ledger.db", "ledger.db-wal", "blobs", "redis"} <= set(readable(open_folder))
    mesh.start_control()
    work(mesh)
    assert readable(open_folder) == []


def writable(node: Path) -> list[str]:
    """What others could change, but for the owner's socket; the folder itself is `.`."""
    return sorted(
        str(path.relative_to(node))
        for path in (node, *node.rglob("*"))
        if path.lstat().st_mode & 0o022 and not path.is_symlink() and not path.is_socket()
    )


def test_under_a_umask_of_0_no_other_user_can_write_a_nodes_files(
    open_folder: Path, make_mesh: MakeMesh
) -> None:
    mesh = make_mesh("n1", data=open_folder)
    nodes, agent = open_folder / "nodes", open_folder / "nodes" / "n1" / "agent"
    assert writable(nodes) == []
    mesh.nodes["n1"].stop()
    for path in (agent.parent, agent, agent / "main.py"):
        path.chmod(0o777)  # as an earlier version left them
    mesh.nodes["n1"].start()
    until(lambda: writable(nodes) == [], "the folders are closed", 20)
