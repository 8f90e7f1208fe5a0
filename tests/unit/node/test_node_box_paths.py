"""Where a box mounts what it shows, what it refuses to show, and what the agent says of that."""

from __future__ import annotations

import os
import pwd
import sys
from pathlib import Path

import pytest

from rae_node.config.layout import Layout
from rae_node.errors import NodeError
from rae_node.isolation.bubblewrap_view import MISSING, NOT_SHOWN, View, view_of
from rae_node.workspace.box_paths import (
    Private,
    Shown,
    below,
    exposed,
    interpreter,
    mount_points,
    private_places,
    spellings,
    why_not,
)
from tests.messages import faults

SECRET = Path("/etc/rae/enrolment.json")


@pytest.fixture
def layout(tmp_path: Path) -> Layout:
    found = Layout((tmp_path / "data" / "nodes" / "n1").resolve())
    found.create()
    return found


def private(layout: Layout, package: Path = Path("/opt/x/rae_node")) -> list[Private]:
    return private_places(layout, SECRET, package)


def link(path: Path, target: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)
    return path


def test_a_path_has_a_spelling_for_each_link_on_its_way(tmp_path: Path) -> None:
    root = tmp_path.resolve()
    (root / "py-3.11.7/bin").mkdir(parents=True)
    (root / "py-3.11.7/bin/python3.11").touch()
    link(root / "py-3.11.7/bin/python3", "python3.11")
    link(root / "current", "./py")
    link(root / "py", "../" + root.name + "/py-3.11.7")
    link(root / "venv/bin/python", f"{root}/current/bin/python3")
    assert spellings(root / "venv/bin/python") == [
        root / "venv/bin/python", root / "current/bin/python3", root / "py/bin/python3",
        root / "py-3.11.7/bin/python3", root / "py-3.11.7/bin/python3.11",
        root / "py-3.11.7/bin/python3.11",
    ]  # fmt: skip


def test_each_spelling_is_mounted_unless_a_folder_above_it_is(tmp_path: Path) -> None:
    root = tmp_path.resolve()
    (root / "real/venv").mkdir(parents=True)
    link(root / "way", "real")
    found = mount_points([root / "way/venv", root / "real/venv/bin/python", Path("/usr/bin/true")])
    assert found == [root / "real/venv", root / "way/venv"]


def test_a_loop_of_links_is_an_error_and_no_endless_search(tmp_path: Path) -> None:
    link(tmp_path / "a", "b")
    link(tmp_path / "b", "a")
    with pytest.raises(OSError, match="symbolic links"):
        spellings(tmp_path / "a" / "x")


def test_a_path_with_dots_is_never_taken_for_a_part_of_a_folder() -> None:
    assert not below(Path("/usr/../opt/x"), [Path("/usr")])
    assert mount_points([Path("/usr/../opt/x")])[-1] == Path("/usr/../opt/x")


def test_this_interpreter_and_its_tasks_can_be_shown(layout: Layout) -> None:
    view = view_of(layout, None, [Path("/usr/bin/true")], [Path(__file__).parent])
    assert {Path(sys.prefix), Path(sys.base_prefix), Path(sys.executable)} <= set(view.paths)
    view.check()


WHOLE = ["/", "/tmp", "/dev", "/dev/shm", "/proc", "/etc", "/run", "/var", "/sys", "/workdir"]


@pytest.mark.parametrize("folder", WHOLE)
def test_a_folder_of_the_machine_or_of_the_box_is_not_shown_as_a_whole(
    layout: Layout, folder: str
) -> None:
    why = why_not(Path(folder), private(layout))
    assert why is not None and "box has its own" in why


@pytest.mark.parametrize("place", ["/dev/x", "/proc/x", "/sys/x", "/workdir/work/x"])
def test_nothing_is_shown_where_a_box_has_files_of_its_own(layout: Layout, place: str) -> None:
    assert "of its own" in str(why_not(Path(place), private(layout)))


PARTS = ["/tmp/x", "/dev/shm/x", "/workdir/x", "/etc/rae/tasks", "/var/x", "/opt/x", "/usr/lib/x"]


@pytest.mark.parametrize("place", PARTS)
def test_a_folder_elsewhere_is_shown(layout: Layout, place: str) -> None:
    assert why_not(Path(place), private(layout)) is None


def test_no_home_folder_is_shown_as_a_whole_but_a_folder_in_it_is(layout: Layout) -> None:
    homes = {Path(one.pw_dir) for one in pwd.getpwall()}
    homes = {home for home in homes if home.is_relative_to("/home") or home == Path("/root")}
    for home in {Path("/home"), Path("/root"), *homes}:
        assert "home folder" in str(why_not(home, private(layout)))
        if os.access(home, os.X_OK):
            assert why_not(home / "x" / ".venv", private(layout)) is None


def test_a_link_to_a_home_folder_is_that_home_folder(layout: Layout, tmp_path: Path) -> None:
    way = link(tmp_path / "tasks", "/root")
    assert "home folder" in str(why_not(way, private(layout)))


def test_neither_the_data_folder_nor_the_sources_are_shown_as_a_whole(
    layout: Layout, tmp_path: Path
) -> None:
    data, clone = tmp_path / "data", tmp_path / "ein Käfer\nx"
    known = private(layout, clone / "services/node/src/rae_node")
    assert "data folder" in str(why_not(data, known))
    assert "data folder" in str(why_not(layout.root, known))
    assert "settings" in str(why_not(layout.agent, known))
    for sealed in (layout.spool, layout.logs, layout.run, layout.workdir):
        assert sealed.name in str(why_not(sealed / "x", known))
    assert "source checkout" in str(why_not(clone, known))
    assert "source checkout" in str(why_not(clone / "services" / "..", known))
    assert why_not(clone / "services", known) is None
    assert why_not(clone / ".venv", known) is None
    assert why_not(layout.agent / "tasks", known) is None
    assert "secret" in str(why_not(SECRET.parent, known))


def refused(view: View) -> NodeError:
    with pytest.raises(NodeError) as caught:
        view.check()
    assert caught.value.rc == NOT_SHOWN and faults(caught.value.message) == []
    return caught.value


def test_what_cannot_be_shown_is_named_with_the_reason_and_the_way_out(layout: Layout) -> None:
    view = view_of(layout, SECRET, [], [Path("/root")])
    said = refused(view).message
    assert "the task folder /root" in said and "home folder" in said and "task_paths" in said


def test_private_files_in_a_folder_of_the_system_are_refused(layout: Layout) -> None:
    known = [*private(layout), Private(Path("/usr/local/src/x"), "the source checkout")]
    assert exposed(known) is known[-1]
    assert "every box shows" in refused(View((), tuple(known))).message
    assert exposed(private(layout)) is None


def test_a_loop_of_links_is_refused_in_words(layout: Layout, tmp_path: Path) -> None:
    link(tmp_path / "a", "a")
    assert "a box cannot show" in refused(view_of(layout, None, [tmp_path / "a"], [])).message


@pytest.mark.parametrize(
    ("code", "said", "words"),
    [
        (MISSING, "/opt/a\0/opt/b", "the program /opt/b is not visible in a box; move it"),
        (1, "bwrap: execvp: No such file", "does not start in a box (bwrap: execvp: No such file)"),
        (None, "", "does not start in a box (exit None)"),
    ],
)
def test_a_probe_that_fails_says_what_is_not_visible(
    code: int | None, said: str, words: str
) -> None:
    view = View((Shown(Path("/opt/b"), "the program", "move it"),))
    with pytest.raises(NodeError) as caught:
        view.require_success(code, said, "a box")
    assert words in caught.value.message
    view.require_success(0, "", "a box")


def test_the_interpreter_is_shown_by_each_of_its_names() -> None:
    places = mount_points(interpreter())
    for name in (sys.prefix, sys.base_prefix, sys.executable, os.path.realpath(sys.executable)):
        assert below(Path(name), (*places, Path("/usr")))


@pytest.mark.parametrize("name", [".local", ".local/share", ".config", ".ssh"])
def test_where_programs_keep_keys_in_a_home_folder_is_not_shown_as_a_whole(
    layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    every = private(layout)
    own = tmp_path / "home" / name
    assert f"{name} in the home folder of" in str(why_not(own, every))
    if name == ".local/share":
        assert why_not(own / "python" / "3.11", every) is None
