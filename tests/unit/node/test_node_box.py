"""What a box shows, the limits of a delegated cgroup, and what the workspace watch counts."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from rae_node.isolation.bubblewrap import Box, gpu_devices
from rae_node.supervisor.cgroup import Cgroup
from rae_node.supervisor.disk_usage import TooMuch, disk_usage
from rae_node.supervisor.process_tree import memory_used_mb

BOX = Box("/usr/bin/bwrap", ("--ro-bind", "/usr", "/usr"), "")


def pairs(words: tuple[str, ...], option: str) -> dict[str, str]:
    """Where each source of an option is shown."""
    return {words[i + 1]: words[i + 2] for i, word in enumerate(words) if word == option}


def test_a_box_shows_its_workspace_as_workdir_and_of_it_no_logs() -> None:
    """Contract: A12."""
    words = BOX.arguments(Path("/node/workdir/t.1"))
    written = pairs(words, "--bind")
    assert written["/node/workdir/t.1/work"] == "/workdir/work"
    assert written["/node/workdir/t.1/output"] == "/workdir/output"
    assert written["/node/workdir/t.1/tmp"] == "/tmp"
    assert written["/node/workdir/t.1/shm"] == "/dev/shm"
    assert pairs(words, "--ro-bind")["/node/workdir/t.1/input"] == "/workdir/input"
    assert not any("logs" in place for place in written.values())
    for name in ("user", "pid", "ipc", "uts", "net"):
        assert f"--unshare-{name}" in words
    assert "--die-with-parent" in words and words[words.index("--cap-drop") + 1] == "ALL"


def test_what_is_shown_besides_the_system_is_read_only_and_once() -> None:
    shown = (Path("/nowhere/a/b"), Path("/usr/lib/x"), Path("/nowhere/a"), Path("/nowhere/b"))
    found = pairs(BOX.arguments(Path("/w"), shown), "--ro-bind")
    places = [place for place in found.values() if place.startswith(("/nowhere", "/usr/lib"))]
    assert places == ["/nowhere/a", "/nowhere/b"]


@pytest.mark.parametrize("own", ["/tmp", "/dev/shm"])
def test_what_is_shown_lies_over_the_folders_that_a_box_has_of_its_own(own: str) -> None:
    words = BOX.arguments(Path("/w"), (Path(own, "x/.venv"),))
    assert words.index(f"{own}/x/.venv") > words.index(own)


@pytest.fixture
def driver(tmp_path: Path) -> tuple[Path, Path]:
    """Two GPUs as the driver's /proc tells them, and the nodes in /dev."""
    known, devices = tmp_path / "gpus", tmp_path / "dev"
    devices.mkdir()
    for name in ("nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm", "nvidia-modeset", "sda"):
        (devices / name).touch()
    for bus, minor, uuid in (("01", 1, "GPU-a"), ("02", 0, "GPU-b")):
        (known / f"0000:{bus}:00.0").mkdir(parents=True)
        text = f"Model: \t\t RTX 4080\nGPU UUID: \t {uuid}\nDevice Minor: \t {minor}\n"
        (known / f"0000:{bus}:00.0" / "information").write_text(text)
    return known, devices


@pytest.mark.parametrize(
    ("gpus", "names"),
    [
        (["GPU-a"], ["nvidia1", "nvidiactl", "nvidia-uvm"]),
        (["GPU-b"], ["nvidia0", "nvidiactl", "nvidia-uvm"]),
        (["1"], ["nvidia1", "nvidiactl", "nvidia-uvm"]),
        (["GPU-unknown"], ["nvidiactl", "nvidia-uvm"]),
        ([], []),
    ],
)
def test_a_task_gets_the_device_nodes_of_its_own_gpu_and_no_other(
    driver: tuple[Path, Path], gpus: list[str], names: list[str]
) -> None:
    known, devices = driver
    assert [path.name for path in gpu_devices(gpus, known=known, devices=devices)] == names


def delegated(tmp_path: Path, controllers: str) -> Path:
    (tmp_path / "cgroup.controllers").write_text(controllers)
    return tmp_path


def test_a_delegated_cgroup_gets_the_tasks_limits(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base = delegated(tmp_path, "cpu memory pids\n")
    made: list[Path] = []
    mkdir = os.mkdir

    def as_the_kernel(path: str, mode: int = 0o777) -> None:
        mkdir(path, mode)
        made.append(Path(path))
        for name in ("memory.max", "memory.swap.max", "memory.oom.group", "pids.max"):
            (Path(path) / name).touch()

    monkeypatch.setattr(os, "mkdir", as_the_kernel)  # the kernel's part, not ours
    cgroup = Cgroup(512, 100, str(base))
    assert [path.name for path in made] == ["supervisor", "task"]
    assert (base / "supervisor" / "cgroup.procs").read_text() == "0"
    assert (base / "task" / "memory.max").read_text() == str(512 * 1024 * 1024)
    assert (base / "task" / "memory.swap.max").read_text() == "0"
    assert (base / "task" / "memory.oom.group").read_text() == "1"
    assert (base / "task" / "pids.max").read_text() == "100"
    assert cgroup.counts_memory
    (base / "task" / "memory.events").write_text("low 0\noom 2\noom_kill 3\noom_group_kill 1\n")
    assert cgroup.oom_kills() == 3
    cgroup.enter()
    assert (base / "task" / "cgroup.procs").read_text() == "0"
    assert cgroup.kill() and (base / "task" / "cgroup.kill").read_text() == "1"


def test_without_controllers_a_cgroup_is_for_killing_alone(tmp_path: Path) -> None:
    cgroup = Cgroup(512, 100, str(delegated(tmp_path, "\n")))
    assert not cgroup.counts_memory and cgroup.oom_kills() == 0
    assert not (tmp_path / "cgroup.subtree_control").exists()


def test_the_watch_counts_blocks_of_named_and_nameless_files_each_once(tmp_path: Path) -> None:
    (tmp_path / "one").write_bytes(b"x" * 8192)
    os.link(tmp_path / "one", tmp_path / "two")
    with (tmp_path / "sparse").open("wb") as file:
        file.truncate(1 << 30)
    named = disk_usage(str(tmp_path), (), 100)
    assert 8192 <= named < 1 << 20
    with (tmp_path / "gone").open("wb") as file:
        (tmp_path / "gone").unlink()
        file.write(b"x" * 65536)
        file.flush()
        os.fsync(file.fileno())
        assert disk_usage(str(tmp_path), (os.getpid(),), 100) >= named + 65536


def test_the_watch_looks_into_folders_that_were_closed_to_it(tmp_path: Path) -> None:
    closed = tmp_path / "closed"
    closed.mkdir()
    (closed / "file").write_bytes(b"x" * 8192)
    closed.chmod(0)
    assert disk_usage(str(tmp_path), (), 100) >= 8192


def test_too_many_files_and_too_deep_folders_are_too_much(tmp_path: Path) -> None:
    for number in range(11):
        (tmp_path / str(number)).touch()
    with pytest.raises(TooMuch, match="more than 10"):
        disk_usage(str(tmp_path), (), 10)
    deep = tmp_path / "deep"
    deep.mkdir()
    here = os.open(deep, os.O_RDONLY)
    for _ in range(205):
        os.mkdir("d", dir_fd=here)
        below = os.open("d", os.O_RDONLY, dir_fd=here)
        os.close(here)
        here = below
    os.close(here)
    with pytest.raises(TooMuch, match="deep"):
        disk_usage(str(tmp_path), (), 10_000)


def test_shared_memory_counts_once_where_it_would_decide() -> None:
    own = [os.getpid()]
    resident = memory_used_mb(own, 1e9)
    assert 0 < memory_used_mb(own, 0) <= resident * 1.2
