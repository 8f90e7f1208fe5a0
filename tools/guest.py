"""Runs a program as a user without rights: `python -m tools.guest [--no-namespaces] PROGRAM ARGS…`.

Tasks never run as root, so what tests their box does not either. Who is no root already is left as
he is. Root becomes a user that owns nothing, in a mount namespace of its own where that user can
reach this checkout and the interpreter, wherever they lie. `--no-namespaces` forbids the program to
make user namespaces.
"""

from __future__ import annotations

import ctypes
import os
import subprocess
import sys
from pathlib import Path

GUEST = 61999
CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
PR_SET_DUMPABLE = 4
_libc = ctypes.CDLL(None, use_errno=True)


def unshare(flags: int) -> None:
    if _libc.unshare(flags) != 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))


def mount(*args: str) -> None:
    subprocess.run(["mount", *args], check=True)


def closed_above(path: Path) -> Path | None:
    """The outermost folder above a path that others may not enter."""
    for folder in reversed(path.parents):
        if not folder.stat().st_mode & 0o001:
            return folder
    return None


def open_paths(paths: set[Path]) -> None:
    """Make paths reachable for everybody, in this mount namespace alone."""
    unshare(CLONE_NEWNS)
    mount("--make-rprivate", "/")
    holder = Path("/mnt")
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(holder))
    held = {}
    for number, path in enumerate(sorted(paths)):
        held[path] = holder / str(number)
        held[path].mkdir()
        mount("--bind", str(path), str(held[path]))
    for folder in sorted({found for path in paths if (found := closed_above(path))}):
        mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(folder))
    for path, copy in held.items():
        if not path.exists():
            path.mkdir(parents=True)
            mount("--bind", str(copy), str(path))
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(holder))


def forbid_namespaces() -> None:
    """From here on nobody below makes a user namespace."""
    uid, gid = os.getuid(), os.getgid()
    unshare(CLONE_NEWUSER)
    Path("/proc/self/setgroups").write_text("deny")
    Path("/proc/self/uid_map").write_text(f"{uid} {uid} 1")
    Path("/proc/self/gid_map").write_text(f"{gid} {gid} 1")
    Path("/proc/sys/user/max_user_namespaces").write_text("0")


def main(argv: list[str]) -> None:
    forbid = argv[:1] == ["--no-namespaces"]
    program = argv[1:] if forbid else argv
    if os.getuid() == 0:
        checkout = Path(__file__).resolve().parents[1]
        prefixes = {Path(folder).resolve() for folder in (sys.prefix, sys.base_prefix)}
        open_paths({checkout, *prefixes})
        os.chdir(checkout)
        os.setgroups([])
        os.setgid(GUEST)
        os.setuid(GUEST)
        os.environ["HOME"] = "/nonexistent"
        _libc.prctl(PR_SET_DUMPABLE, 1)  # /proc/self is root's after a change of user
    if forbid:
        forbid_namespaces()
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    os.execvp(program[0], program)  # noqa: S606 - its whole purpose


if __name__ == "__main__":
    main(sys.argv[1:])
