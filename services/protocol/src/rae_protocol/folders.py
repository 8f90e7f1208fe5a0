"""Folders with a mode of our choice, whatever the umask of who started the program."""

from __future__ import annotations

import stat
from pathlib import Path

_PARENT = 0o755


def make_folder(folder: Path, mode: int) -> None:
    """Make a folder with this mode unless it is there; missing parents get 0755. Raises OSError.

    `Path.mkdir(mode, parents=True)` leaves the parents to the umask: at 000 anybody could then
    replace the folder, and at 077 no other user would reach it.
    """
    if folder.is_dir():
        return
    if folder.parent != folder and not folder.parent.exists():
        make_folder(folder.parent, _PARENT)
    try:
        folder.mkdir(mode)
    except FileExistsError:  # by another process, just now
        if not folder.is_dir():
            raise
        return
    # The set-group-ID bit comes from the folder above.
    folder.chmod(mode | folder.stat().st_mode & stat.S_ISGID)
