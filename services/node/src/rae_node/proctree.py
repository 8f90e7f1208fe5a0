"""Process trees and folders, with the standard library alone: shared by agent and supervisor."""

from __future__ import annotations

# Without pathlib, which would cost the supervisor a third of its start-up time:
# ruff: noqa: PTH101, PTH106, PTH110, PTH123, PTH208
import os
import resource
import signal
import time


def children(pid: int) -> list[int]:
    """Direct children of a process, those of each of its threads; [] when it is gone."""
    found: list[int] = []
    try:
        for thread in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{thread}/children", "rb") as handle:
                found += [int(child) for child in handle.read().split()]
    except OSError:
        if not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):
            return _children_by_stat(pid)
    return found


def _children_by_stat(pid: int) -> list[int]:
    """For kernels without CONFIG_PROC_CHILDREN."""
    found = []
    for name in os.listdir("/proc"):
        if name.isdigit():
            try:
                with open(f"/proc/{name}/stat", "rb") as handle:
                    parent = int(handle.read().rpartition(b")")[2].split()[1])
            except (OSError, IndexError, ValueError):
                continue
            if parent == pid:
                found.append(int(name))
    return found


def descendants(pid: int) -> list[int]:
    """Every process below `pid`, deepest last."""
    found: list[int] = []
    layer = children(pid)
    while layer:
        found += layer
        layer = [grandchild for child in layer for grandchild in children(child)]
    return found


def send_kill(pids: list[int]) -> None:
    """SIGKILL to each; who is gone already is fine."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            continue


def wipe(folder: str) -> None:
    """Delete a folder with everything in it, however deep and whatever its modes.

    Folders inside are first moved to the top, so depth costs neither stack nor descriptors, and no
    link is ever followed. Raises OSError.
    """
    try:
        os.chmod(folder, 0o700)
        top = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return
    number = time.time_ns()
    try:
        while names := os.listdir(top):
            for name in names:
                try:
                    os.unlink(name, dir_fd=top)
                    continue
                except IsADirectoryError:
                    pass
                except FileNotFoundError:
                    continue
                os.chmod(name, 0o700, dir_fd=top)
                inner = os.open(
                    name, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=top
                )
                try:
                    for child in os.listdir(inner):
                        try:
                            os.unlink(child, dir_fd=inner)
                        except IsADirectoryError:
                            number += 1
                            os.chmod(child, 0o700, dir_fd=inner)
                            os.rename(child, f".wipe{number}", src_dir_fd=inner, dst_dir_fd=top)
                finally:
                    os.close(inner)
                os.rmdir(name, dir_fd=top)
    finally:
        os.close(top)
    os.rmdir(folder)


def oom_kills() -> int:
    """How often the kernel killed for memory since boot; 0 where it does not say."""
    try:
        with open("/proc/vmstat", "rb") as handle:
            for line in handle:
                if line.startswith(b"oom_kill "):
                    return int(line.split()[1])
    except OSError:
        pass
    return 0


def resident_mb(pids: list[int]) -> float:
    """Resident memory of processes together, in MiB."""
    pages = 0
    for pid in pids:
        try:
            with open(f"/proc/{pid}/statm", "rb") as handle:
                pages += int(handle.read().split()[1])
        except (OSError, IndexError):
            continue
    return pages * resource.getpagesize() / 1048576
