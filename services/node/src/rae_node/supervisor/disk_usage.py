"""What a task has written: in its workspace, and in files that have no name any more."""

from __future__ import annotations

# Without pathlib, which would cost the supervisor a third of its start-up time:
# ruff: noqa: PTH116, PTH208
import os
import stat
from collections.abc import Collection

from rae_node.supervisor.process_tree import entered, memory_facts

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_DEEPEST = 200
_MOST_OPEN = 100_000  # a look at them takes less than a second
_BLOCK = 512


class TooMuch(Exception):
    """More files than are worth counting, or folders too deep to be counted."""


def disk_usage(
    folder: str, pids: Collection[int], most: int, ours: Collection[int | None] = ()
) -> int:
    """Bytes of a folder and of what processes hold open without a name.

    Raises TooMuch beyond `most` files, 200 folders in each other or 100,000 descriptors, and for a
    process that may not be looked into and is none of `ours`.
    """
    seen: dict[tuple[int, int], int] = {}
    try:
        top = os.open(folder, _FOLDER)
    except OSError:
        return 0
    _count(top, seen, _DEEPEST, most)
    held = 0
    for pid in pids:
        held += _count_open(pid, seen, hides=pid not in ours)
        if held > _MOST_OPEN:
            raise TooMuch(f"its processes hold more than {_MOST_OPEN} files open")
    if len(seen) > most:
        raise TooMuch(f"its files are more than {most}")
    return sum(seen.values())


def _count(folder: int, seen: dict[tuple[int, int], int], depth: int, most: int) -> None:
    """Count what is below, and close the folder."""
    try:
        with os.scandir(folder) as entries:
            for entry in entries:
                if len(seen) > most:
                    raise TooMuch(f"its files are more than {most}")
                try:
                    info = entry.stat(follow_symlinks=False)
                    seen[info.st_dev, info.st_ino] = info.st_blocks * _BLOCK
                    if not stat.S_ISDIR(info.st_mode):
                        continue
                    inner = _opened(entry.name, folder)
                except OSError:
                    continue  # gone; or another user's, who is not the task
                if depth == 0:
                    os.close(inner)
                    raise TooMuch(f"its folders are more than {_DEEPEST} deep")
                _count(inner, seen, depth - 1, most)
    finally:
        os.close(folder)


def _opened(name: str, above: int) -> int:
    """A folder's descriptor. A task that closes a folder to itself hides nothing in it."""
    try:
        return os.open(name, _FOLDER, dir_fd=above)
    except PermissionError:
        return entered(name, above)


def _count_open(pid: int, seen: dict[tuple[int, int], int], *, hides: bool) -> int:
    """How many descriptors a process has; what lies behind them is added up."""
    where, facts = memory_facts(pid)
    if not facts:
        return 0
    folder = f"/proc/{where}/fd"
    try:
        names = os.listdir(folder)
    except PermissionError as error:
        # As is whoever runs a program that he may not read, see exec(2) and proc(5).
        if hides and memory_facts(pid)[1]:
            raise TooMuch("one of its processes hides what it holds open") from error
        return 0
    except OSError:
        return 0
    for name in names:
        try:
            info = os.stat(f"{folder}/{name}")
        except OSError:
            continue
        if info.st_nlink == 0 and stat.S_ISREG(info.st_mode):
            seen[info.st_dev, info.st_ino] = info.st_blocks * _BLOCK
    return len(names)
