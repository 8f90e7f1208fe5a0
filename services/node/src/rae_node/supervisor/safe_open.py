"""Opening what a task left in its workspace. Standard library only: a supervisor does it, too."""

from __future__ import annotations

import errno
import os
import stat

_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC
_FILE = os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC
_DISK = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EROFS}


class Refused(Exception):
    """It is no plain file; the text is for the submitter."""


def open_inside(workspace: str, folder: str, name: str) -> int | None:
    """A descriptor of a plain file below a folder of the workspace; None when it is not there.

    Each part is opened in the one before and no link is followed, as openat2(2) does with
    RESOLVE_NO_SYMLINKS; the folder itself may be gone or a link: a task can do that to its own.
    Raises Refused, OSError for trouble with the disk.
    """
    *folders, last = [folder, *name.split("/")]
    opened: list[int] = []
    try:
        opened.append(os.open(workspace, _FOLDER))
        for part in folders:
            opened.append(os.open(part, _FOLDER, dir_fd=opened[-1]))
        file = os.open(last, _FILE, dir_fd=opened[-1])
    except FileNotFoundError:
        return None
    except OSError as error:
        if error.errno in _DISK:
            raise
        text = f"'{name}' is a link or no file; write a plain one ({error.strerror})"
        raise Refused(text) from error
    finally:
        for handle in opened:
            os.close(handle)
    if stat.S_ISREG(os.fstat(file).st_mode):
        return file
    os.close(file)
    raise Refused(f"'{name}' is no plain file with one name; write a copy")
