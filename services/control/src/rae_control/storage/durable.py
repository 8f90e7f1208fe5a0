"""Folders that survive a power cut, and files that keep other processes out."""

from __future__ import annotations

import contextlib
import fcntl
import os
from pathlib import Path
from typing import IO

from rae_control.errors import LedgerLocked


def sync_folder(path: Path) -> None:
    """A renamed or new file's name survives a power cut only when its folder was synced."""
    handle = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def lock_file(path: Path) -> IO[str]:
    """Keep every other process out until the handle closes. Raises LedgerLocked."""
    handle = path.open("a+", encoding="utf-8")
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        handle.seek(0)
        pid = handle.read().strip() or "unknown"
        handle.close()
        raise LedgerLocked(
            f"{path.parent} is served by process {pid}; stop it, or use another data folder"
        ) from error
    # Who holds it is only for messages: a full disk must not keep control from starting.
    with contextlib.suppress(OSError):
        os.ftruncate(handle.fileno(), 0)
        os.write(handle.fileno(), str(os.getpid()).encode())
    return handle
