"""Which paths a box shows besides the system, where it mounts them, and which it must not show."""

from __future__ import annotations

import errno
import os
import pwd
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from rae_node.config.layout import Layout
from rae_node.workspace.workspace import INSIDE

ROOTS = ("/usr", "/bin", "/sbin", "/lib", "/lib32", "/lib64", "/libx32")
# What programs of a distribution look up there, and nothing that tells of this machine's people.
ETC = (
    "/etc/alternatives", "/etc/ld.so.cache", "/etc/ld.so.conf", "/etc/ld.so.conf.d",
    "/etc/localtime", "/etc/timezone", "/etc/ssl/certs", "/etc/ssl/openssl.cnf", "/etc/fonts",
    "/etc/magic", "/etc/mime.types", "/etc/OpenCL", "/etc/vulkan",
)  # fmt: skip
_SYSTEM = tuple(map(Path, (*ROOTS, *ETC)))
_SHM = Path("/dev/shm")  # noqa: S108 - a mount point of the box
# Folders that a box has of its own, or that hold sockets and secrets of the whole machine.
_WHOLE = (_SHM, INSIDE, *map(Path, ("/tmp", "/var/tmp", "/dev", "/proc", "/etc", "/run", "/sys")))  # noqa: S108 - as above
_CLOSED = (
    *map(Path, ("/dev", "/proc", "/sys")),
    *(INSIDE / name for name in ("input", "work", "output", "logs")),
)
_MOST_LINKS = 40  # as the kernel has it, see path_resolution(7)
_SOURCES = ("services", "node", "src", "rae_node")
# Folders of a home folder in which programs keep passwords, keys and histories.
_OWN = (".local", ".local/share", ".config", ".cache", ".ssh", ".gnupg")


@dataclass(frozen=True, slots=True)
class Shown:
    """A file or folder that boxes must show. `what` it is; `fix`: what to do when they cannot."""

    path: Path
    what: str
    fix: str


@dataclass(frozen=True, slots=True)
class Private:
    """A file or folder that no box shows as a whole; `sealed`: nor any part of it."""

    path: Path
    what: str
    sealed: bool = False


def below(path: Path, folders: Iterable[Path]) -> bool:
    """Whether a path is one of the folders or lies in one; never said of a path with `..`."""
    return ".." not in path.parts and any(path.is_relative_to(folder) for folder in folders)


def in_system(path: Path) -> bool:
    """Whether every box shows this path anyway."""
    return below(path, _SYSTEM)


def spellings(path: Path) -> list[Path]:
    """An absolute path as written, as it reads after each symbolic link, and its real path.

    A program in a box that follows the links needs each of them. Raises OSError for a loop.
    """
    found, done, rest = [path], Path("/"), list(path.parts[1:])
    while rest:
        part = rest.pop(0)
        step = done.parent if part == ".." else done / part
        if not step.is_symlink():
            done = step
            continue
        target = step.readlink()
        done = Path("/") if target.is_absolute() else done
        rest = [*(part for part in target.parts if part != "/"), *rest]
        while rest[:1] == [".."]:
            done = done.parent
            del rest[0]
        found.append(done.joinpath(*rest))
        if len(found) > _MOST_LINKS:
            raise OSError(errno.ELOOP, os.strerror(errno.ELOOP), str(path))
    return [*found, done]


def mount_points(paths: Iterable[Path]) -> list[Path]:
    """Where to mount what is shown: each spelling that no other one and no system folder covers."""
    found: list[Path] = []
    for place in sorted({spelling for path in paths for spelling in spellings(path)}):
        if not below(place, (*_SYSTEM, *found)):
            found.append(place)
    return found


def interpreter() -> tuple[Path, ...]:
    """What a box must show so that this interpreter starts in it."""
    names = (sys.prefix, sys.base_prefix, sys.base_exec_prefix, sys.executable)
    return tuple(dict.fromkeys(Path(name).absolute() for name in names))


def private_places(layout: Layout, secret: Path | None, package: Path) -> list[Private]:
    """What no task may see: home folders, the data folder, the sources.

    `secret`: the file of the enrolment; `package`: where this code lies.
    """
    homes = {one.pw_dir: f"the home folder of {one.pw_name}" for one in pwd.getpwall()}
    homes[os.environ.get("HOME", "")] = "the home folder of the agent's user"
    # Those of system accounts, such as /usr/games, hold no user's files; some have none.
    people = [Private(Path(home), what) for home, what in sorted(homes.items()) if home[:1] == "/"]
    # What is deeper in these, such as an interpreter in ~/.local/share/python, may be shown.
    people += [Private(one.path / name, f"{name} in {one.what}") for one in people for name in _OWN]
    found = [one for one in people if not in_system(one.path)]
    found += [Private(Path(name), "the home folders") for name in ("/home", "/root")]
    found += [Private(layout.root, "the data folder"), Private(layout.agent, "the node's settings")]
    found += [Private(secret, "the node's secret")] if secret is not None else []
    for folder in (layout.workdir, layout.spool, layout.logs, layout.run):
        found.append(Private(folder, f"the node's {folder.name} folder", sealed=True))
    if package.parts[-len(_SOURCES) :] == _SOURCES:
        found.append(Private(package.parents[len(_SOURCES) - 1], "the source checkout"))
    return found


def why_not(path: Path, private: Sequence[Private]) -> str | None:
    """Why boxes cannot show a path; None when they can. Raises OSError."""
    every = spellings(path)
    for place in every:
        if in_system(place):
            continue
        for whole in _WHOLE:
            if whole.is_relative_to(place):
                return f"it {_relation(whole, place)} {whole}, of which a box has its own, or none"
        if below(place, _CLOSED) and not below(place, (_SHM,)):
            return f"{place} is where a box has files of its own"
    real = every[-1]
    if in_system(real):
        return None
    for one in private:
        hidden = _real(one.path)
        if hidden.is_relative_to(real):
            return f"it {_relation(hidden, real)} {one.what}, {hidden}"
        if one.sealed and real.is_relative_to(hidden):
            return f"it lies in {one.what}, {hidden}"
    return None


def exposed(private: Sequence[Private]) -> Private | None:
    """The first private place that lies in a folder which every box shows."""
    return next((one for one in private if in_system(_real(one.path))), None)


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # unlike `resolve`, it stops at a loop of links


def _relation(inner: Path, outer: Path) -> str:
    return "is" if inner == outer else "contains"
