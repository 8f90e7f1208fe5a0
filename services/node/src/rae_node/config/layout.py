"""Where things are below a node's root folder (A9), and where its socket is."""

from __future__ import annotations

import os
import socket
import stat
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from pydantic import TypeAdapter, ValidationError

from rae_node.errors import ConfigError, NodeError, first_problem, listed
from rae_protocol.folders import make_folder
from rae_protocol.names import NodeId

_NODE_ID: TypeAdapter[str] = TypeAdapter(NodeId)

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
    def owner_file(self) -> Path:
        """The owner's own rules; it may be missing."""
        return self.agent / "owner.yaml"

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

    @property
    def pause_file(self) -> Path:
        """The owner's pause as he writes it by hand; its folder is his group's."""
        return self.root / "owner" / "pause"

    @property
    def proofs_file(self) -> Path:
        """On which seats input is proven to be seen."""
        return self.run / "proofs.json"

    def create(self) -> None:
        """Make the folders; workspaces and spool are for the agent alone. Raises OSError."""
        for folder in (
            self.agent, self.root / "models", self.logs, self.run, self.pause_file.parent
        ):  # fmt: skip
            make_folder(folder, 0o755)
        # The rules there are for no other user to change, nor to replace by renaming a folder.
        for folder in (self.root, self.agent, self.logs, self.run):
            _close_to_writers(folder)
        for folder in (self.workdir, self.spool):
            make_folder(folder, 0o700)
            if not folder.stat().st_mode & stat.S_ISGID:  # then root shares it with the tasks
                folder.chmod(0o700)


def _close_to_writers(folder: Path) -> None:
    """Take away what a loose umask gave everybody in a folder of ours. Raises OSError."""
    info = folder.stat()
    open_to_all = info.st_mode & stat.S_IWOTH and not info.st_mode & stat.S_ISVTX
    if open_to_all and info.st_uid == os.getuid():
        folder.chmod(stat.S_IMODE(info.st_mode) & ~0o022)


def socket_path(root: Path) -> Path:
    """The local socket: beside the lock, where the agent's user alone writes."""
    return root / "run" / "rae-node.sock"


@contextmanager
def socket_address(path: Path) -> Iterator[str]:
    """What bind(2) and connect(2) take for a socket's path, however long. Raises OSError."""
    if len(os.fsencode(path)) <= _SOCKET_LIMIT:
        yield str(path)
        return
    # Not a shorter path elsewhere: in /tmp another user could be there first.
    folder = os.open(path.parent, os.O_PATH | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield f"/proc/self/fd/{folder}/{path.name}"
    finally:
        os.close(folder)


def write_file(file: Path, text: str, mode: int = 0o600) -> None:
    """Write a file as a whole, on disk before this returns. Raises OSError."""
    # A name of its own: another process, or thread, may write the same file now.
    partial = file.with_name(f"{file.name}.{os.getpid()}-{threading.get_ident()}.part")
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
    """Root folder of a dev node. Raises ConfigError for a name that no node can have."""
    try:
        _NODE_ID.validate_python(node_id)
    except ValidationError as error:
        raise ConfigError(f"--node-id: {first_problem(error, repr(node_id))}") from error
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
