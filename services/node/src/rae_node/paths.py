"""Where things are below a node's root folder (A9), and where its socket is."""

from __future__ import annotations

import hashlib
import os
import socket
import stat
import tempfile
from dataclasses import dataclass
from pathlib import Path

from rae_node.errors import NodeError, listed

PRODUCTION_ROOT = Path("/opt/rae-node")
_SOCKET_LIMIT = 107  # sizeof(sun_path) - 1, see unix(7)


@dataclass(frozen=True, slots=True)
class Layout:
    """The folders of one node."""

    root: Path

    @property
    def agent(self) -> Path:
        """What the owner and the operator look at."""
        return self.root / "agent"

    @property
    def config_file(self) -> Path:
        """What the node is."""
        return self.agent / "config.yaml"

    @property
    def runtime_file(self) -> Path:
        """When it may work."""
        return self.agent / "runtime.yaml"

    @property
    def workdir(self) -> Path:
        """One workspace per attempt."""
        return self.root / "workdir"

    @property
    def logs(self) -> Path:
        """Decision logs; they never leave the node."""
        return self.root / "logs"

    @property
    def spool(self) -> Path:
        """What control has not taken yet."""
        return self.root / "spool"

    @property
    def run(self) -> Path:
        """Lock, socket, supervisor records, the owner's pause."""
        return self.root / "run"

    def create(self) -> None:
        """Make the folders; workspaces and spool are for the agent alone. Raises OSError."""
        for folder in (self.agent, self.root / "models", self.logs, self.run):
            folder.mkdir(parents=True, exist_ok=True)
        for folder in (self.workdir, self.spool):
            folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            if not folder.stat().st_mode & stat.S_ISGID:  # then root shares it with the tasks
                folder.chmod(0o700)


def socket_path(root: Path) -> Path:
    """The local socket; a short name elsewhere when the root's is too long for the kernel.

    Agent and client both ask here. Raises OSError.
    """
    direct = root / "run" / "rae-node.sock"
    if len(os.fsencode(direct)) <= _SOCKET_LIMIT:
        return direct
    digest = hashlib.sha256(os.fsencode(root)).hexdigest()[:24]
    runtime = os.environ.get("XDG_RUNTIME_DIR")
    for parent in (Path(runtime) if runtime else None, Path(tempfile.gettempdir()), Path("/tmp")):  # noqa: S108 - the folder below is ours or refused
        if parent is None or not parent.is_dir():
            continue
        path = parent / f"rae-node-{os.getuid()}" / f"{digest}.sock"
        if len(os.fsencode(path)) <= _SOCKET_LIMIT:
            path.parent.mkdir(mode=0o700, exist_ok=True)
            info = path.parent.lstat()
            if info.st_uid != os.getuid() or info.st_mode & 0o77 or path.parent.is_symlink():
                raise NodeError("bad_folder", f"{path.parent} is open to other users; remove it")
            return path
    raise NodeError("bad_folder", f"{root} is too long for a socket; use a shorter --data")


def write_file(file: Path, text: str, mode: int = 0o600) -> None:
    """Write a file as a whole, on disk before this returns. Raises OSError."""
    partial = file.with_name(f"{file.name}.part")
    partial.unlink(missing_ok=True)
    opened = os.open(partial, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    with os.fdopen(opened, "w", encoding="utf-8") as handle:
        handle.write(text)
        handle.flush()
        os.fsync(opened)
    partial.replace(file)
    sync_folder(file.parent)


def sync_folder(folder: Path) -> None:
    """Have the folder's entries on disk. Raises OSError."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def default_node_id(hostname: str | None = None) -> str:
    """The host's name, made fit for a node_id, with `-dev`."""
    name = socket.gethostname() if hostname is None else hostname
    clean = "".join(letter if letter.isalnum() and letter.isascii() else "-" for letter in name)
    return f"{clean.strip('-')[:59] or 'node'}-dev"


def dev_root(data: Path, node_id: str) -> Path:
    """Root folder of a dev node."""
    return (data / "nodes" / node_id).resolve()


def only_dev_node(data: Path) -> str:
    """The one node below a data folder. Raises NodeError when there are none or several."""
    nodes = data / "nodes"
    names = sorted(entry.name for entry in nodes.iterdir()) if nodes.is_dir() else []
    if len(names) != 1:
        problem = (
            "there is none (`rae-node run --dev` makes one)"
            if not names
            else f"there are {listed(names)}"
        )
        raise NodeError("which_node", f"Say which node with --node-id: below {nodes} {problem}")
    return names[0]
