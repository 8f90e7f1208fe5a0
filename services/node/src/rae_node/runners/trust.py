"""Whether a file may be run for strangers: who can change it decides."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

from rae_node.package import PACKAGE

_OTHERS = stat.S_IWGRP | stat.S_IWOTH
Identity = tuple[int, int, int, int, int]


def untrusted(file: Path, workdir: Path | None = None) -> str | None:
    """Why a file cannot be trusted, None when it can: none of `workdir`. Raises OSError.

    It, its folders, and every link on the way belong to root or to us, and no other user may write
    there. In a folder such as /tmp no user can replace what belongs to others.
    """
    real = file.resolve()
    if workdir is not None and real.is_relative_to(workdir.resolve()):
        return f"{file} is inside the workspaces; move it elsewhere"
    if real.is_relative_to(PACKAGE.resolve()):
        return None  # whoever could write here could change the agent itself (umask 002 in a clone)
    for path in _places(file):
        info = path.lstat()
        if info.st_uid not in {0, os.getuid()}:
            return f"{path} belongs to another user; `chown root {path}` repairs that"
        sticky = stat.S_ISDIR(info.st_mode) and info.st_mode & stat.S_ISVTX
        if info.st_mode & _OTHERS and not sticky and not stat.S_ISLNK(info.st_mode):
            return f"{path} can be written by others; `chmod go-w {path}` repairs that"
    return None


def _places(file: Path) -> Iterator[Path]:
    """Everything that decides what a name stands for."""
    while True:
        folder = file.parent.resolve()
        yield from (folder, *folder.parents, file)
        if not file.is_symlink():
            return
        file = folder / file.readlink()


def identity(file: Path) -> Identity:
    """What changes when a file is replaced or written to. Raises OSError."""
    info = file.stat()
    return (info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns)
