"""Small disks to fill, in a mount namespace of their own: nothing stays mounted at the end."""

from __future__ import annotations

import contextlib
import os
import shutil
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from tools.processes import MeshError

MIB = 1024 * 1024
LOW_WATER = 8 * MIB
_INSIDE = "RAE_CHAOS_NAMESPACE"
# Folder below the mesh's, MiB. The ledger's is the folder itself, so it comes first. `log` is what
# processes print; the audit reads it, so it stays free.
_DISKS = {"ledger": ("", 96), "blobs": ("blobs", 48), "redis": ("redis", 24), "log": ("log", 512)}
_NODE_DISKS = {"spool": 8, "workdir": 16}


class Disks:
    """A small disk for each thing that a mesh writes, below one folder."""

    def __init__(self, data: Path) -> None:
        self.data = data

    def folder(self, name: str, node: str = "") -> Path:
        """Where a disk is mounted."""
        if name in _DISKS:
            return self.data / _DISKS[name][0]
        return self.data / "nodes" / node / name

    def mount(self, nodes: Sequence[str]) -> None:
        """Make them all. Raises MeshError."""
        wanted = [(self.folder(name), size) for name, (_, size) in _DISKS.items()]
        wanted += [(self.folder(name, node), size)
                   for node in nodes for name, size in _NODE_DISKS.items()]  # fmt: skip
        for where, size in wanted:
            where.mkdir(mode=0o700, parents=True, exist_ok=True)
            _mount("-t", "tmpfs", "-o", f"size={size}m,mode=0700", "tmpfs", str(where))

    def unmount(self) -> None:
        """Let go of them, so that the folder can be removed."""
        subprocess.run(["umount", "--recursive", "--lazy", str(self.data)], check=False)


def fill(ballast: Path) -> None:
    """Leave no byte on the file's disk."""
    handle = os.open(ballast, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        for piece in (MIB, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    os.write(handle, b"\0" * piece)
    finally:
        os.close(handle)


def enter_namespace() -> None:
    """Go on in a mount namespace of our own (as a stranger's root, where that is allowed).

    Raises MeshError where the machine allows neither.
    """
    if inside := os.environ.get(_INSIDE):
        if inside == "user":
            own_root()
        return
    command = ["unshare", "--mount", "--propagation", "private"]
    user = os.geteuid() != 0
    if user:
        command += ["--user", "--map-root-user"]
    if not shutil.which("unshare") or subprocess.run([*command, "true"], check=False).returncode:
        raise MeshError(
            "full disks need a mount namespace, and this machine allows none; run it as root, or "
            "leave them out with FAULTS=kill,stop,clock,aof,intermediary,copy"
        )
    os.environ[_INSIDE] = "user" if user else "root"
    os.execvp(command[0], [*command, sys.executable, "-m", "tools.scenarios", *sys.argv[1:]])  # noqa: S606 - the same program


def own_root(holder: Path = Path("/mnt")) -> None:
    """Make a folder of our own the root, with all of the machine's in it. Raises MeshError.

    A user namespace that a user without rights makes knows that user alone: `/` and /tmp belong to
    an unknown one there, and agents rightly trust no task below such a folder.
    """
    here, hidden = Path.cwd(), os.open(holder, os.O_PATH)
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(holder))
    for entry in Path("/").iterdir():
        place = holder / entry.name
        if entry.is_symlink():
            place.symlink_to(entry.readlink())
        elif entry.is_dir():
            place.mkdir()
            source = f"/proc/{os.getpid()}/fd/{hidden}" if entry == holder else str(entry)
            _mount("--rbind", source, str(place))
    os.close(hidden)
    files = Path("/chaos")
    (holder / files.name).mkdir(mode=0o700)
    os.chroot(holder)
    os.chdir(here)
    os.environ["TMPDIR"] = str(files)


def _mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise MeshError(f"mount {' '.join(words)}: {done.stderr.strip()}")
