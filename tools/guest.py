"""Runs a program as a user without rights: `python -m tools.guest [--no-namespaces] PROGRAM ARGS…`.

Tasks never run as root, so what tests their box does not either. Who is no root already is left as
he is. Root becomes a user that owns nothing, in a mount namespace of its own where that user can
reach this checkout and the interpreter, wherever they lie. What only its owner may read, as after a
checkout with umask 077, is replaced there by a readable copy in memory. `--no-namespaces` forbids
the program to make user namespaces.
"""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

GUEST = 61999
CLONE_NEWNS, CLONE_NEWUSER = 0x00020000, 0x10000000
PR_SET_DUMPABLE = 4
# Folders at the top of a checkout that no test needs.
UNNEEDED = (".git", ".venv-*", ".*_cache", ".hypothesis", "build", "dist")
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


def unneeded(top: Path) -> Callable[[str, list[str]], set[str]]:
    """As shutil.copytree wants it: which names in a folder are left out."""
    matching = shutil.ignore_patterns(*UNNEEDED)
    return lambda folder, names: matching(folder, names) if Path(folder) == top else set()


def readable(path: Path) -> bool:
    """Whether everybody may read the folders and programs below a path."""
    needless = unneeded(path)
    for folder, names, files in os.walk(path):
        names[:] = set(names) - needless(folder, names)
        if Path(folder).stat().st_mode & 0o005 != 0o005:
            return False
        programs = (Path(folder, name) for name in files if name.endswith(".py"))
        if not all(program.lstat().st_mode & 0o004 for program in programs):
            return False
    return True


def readable_copy(source: Path, target: Path) -> None:
    """Copy a folder so that everybody may read it; it must not exist yet."""
    shutil.copytree(source, target, symlinks=True, ignore=unneeded(source))
    for folder, _, files in os.walk(target):
        for path in (Path(folder), *(Path(folder, name) for name in files)):
            if not path.is_symlink():
                mode = path.stat().st_mode
                path.chmod(mode | (0o055 if mode & 0o100 else 0o044))


def open_paths(paths: set[Path]) -> None:
    """Make paths readable for everybody, in this mount namespace alone."""
    unshare(CLONE_NEWNS)
    mount("--make-rprivate", "/")
    every = sorted(path for path in paths if not paths & set(path.parents))
    above = {folder for path in every for folder in (path, *path.parents)}
    free = (Path(name) for name in ("/mnt", "/media", "/srv", "/boot"))
    holder = next(folder for folder in free if folder.is_dir() and folder not in above)
    mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(holder))
    held = {}
    for number, path in enumerate(every):
        held[path] = holder / str(number)
        if readable(path):
            held[path].mkdir()
            mount("--bind", str(path), str(held[path]))
        else:
            readable_copy(path, held[path])
    for folder in sorted({found for path in every if (found := closed_above(path))}):
        mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(folder))
    for path, copy in held.items():
        path.mkdir(parents=True, exist_ok=True)
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
        umask = os.umask(0o022)
        open_paths({checkout, *prefixes})
        os.umask(umask)
        os.chdir(checkout)
        os.setgroups([])
        os.setgid(GUEST)
        os.setuid(GUEST)
        os.environ["HOME"] = "/nonexistent"
        os.environ.pop("XDG_RUNTIME_DIR", None)  # root's
        _libc.prctl(PR_SET_DUMPABLE, 1)  # /proc/self is root's after a change of user
    if forbid:
        forbid_namespaces()
    os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
    os.execvp(program[0], program)  # noqa: S606 - its whole purpose


if __name__ == "__main__":
    main(sys.argv[1:])
