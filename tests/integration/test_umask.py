"""Folders of a development mesh have the modes that they need, whatever the umask of its user."""

from __future__ import annotations

import ast
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from rae_node.config.layout import Layout
from rae_protocol.folders import make_folder
from tests.harness import MakeMesh

TASK = {"kind": "cli", "params": {"command": "true"}}


@contextmanager
def umask(value: int) -> Iterator[None]:
    before = os.umask(value)
    try:
        yield
    finally:
        os.umask(before)


def mode(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("value", [0, 0o002, 0o077])
def test_other_users_reach_a_development_node_and_cannot_change_it(
    make_mesh: MakeMesh, tmp_path: Path, value: int
) -> None:
    with umask(value):
        mesh = make_mesh(data=tmp_path / "data")
        node = mesh.add_node("n1")
        mesh.wait_node("n1", "online")
        assert mesh.rae.wait(mesh.rae.submit([TASK])[0].task_id, 60).state.value == "succeeded"
    (mesh.data).chmod(0o755)  # control has made it private
    shared = [mesh.data / "nodes", node.root]
    shared += [node.root / name for name in ("agent", "run", "logs", "owner")]
    assert {path.name: oct(mode(path)) for path in shared} == {
        path.name: oct(0o755) for path in shared
    }
    assert [oct(mode(node.root / name)) for name in ("workdir", "spool")] == [oct(0o700)] * 2
    open_to_others = [
        str(path)
        for path in node.root.rglob("*")
        if not path.is_symlink() and not path.is_socket() and mode(path) & stat.S_IWOTH
    ]
    assert open_to_others == []


@pytest.mark.parametrize("value", [0, 0o077])
def test_a_nodes_folders_do_not_depend_on_the_umask(tmp_path: Path, value: int) -> None:
    layout = Layout(tmp_path / "above" / "nodes" / "n1")
    with umask(value):
        layout.create()
    for path in (tmp_path / "above", layout.root.parent, layout.root, layout.run, layout.agent):
        assert oct(mode(path)) == oct(0o755), path
    assert {oct(mode(path)) for path in (layout.workdir, layout.spool)} == {oct(0o700)}


def test_a_folder_that_is_there_keeps_its_mode_and_a_file_in_its_place_is_an_error(
    tmp_path: Path,
) -> None:
    (tmp_path / "mine").mkdir(mode=0o750)
    make_folder(tmp_path / "mine", 0o700)
    assert mode(tmp_path / "mine") == 0o750
    (tmp_path / "file").touch()
    with pytest.raises(FileExistsError):
        make_folder(tmp_path / "file", 0o700)
    with pytest.raises(NotADirectoryError):
        make_folder(tmp_path / "file" / "below" / "it", 0o700)


def test_the_group_of_a_shared_folder_goes_down(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    shared.chmod(0o2770)
    with umask(0o077):
        make_folder(shared / "below", 0o770)
    assert mode(shared / "below") == 0o2770


def test_no_service_leaves_the_parents_of_its_folders_to_the_umask() -> None:
    sources = Path(__file__).resolve().parents[2] / "services"
    left = [
        f"{file.name}:{node.lineno}"
        for file in sources.rglob("*.py")
        for node in ast.walk(ast.parse(file.read_text(encoding="utf-8")))
        if isinstance(node, ast.Call) and ast.unparse(node.func).endswith(("mkdir", "makedirs"))
        if any(one.arg == "parents" for one in node.keywords) or "makedirs" in ast.unparse(node)
    ]
    # `raectl artifacts -o DIR` makes folders of its user's own.
    assert [place.partition(":")[0] for place in left] == ["raectl.py"], left
