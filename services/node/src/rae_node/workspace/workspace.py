"""A task's folder: made, filled with inputs, searched for artifacts, deleted."""

from __future__ import annotations

import base64
import hashlib
import os
import stat
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import BinaryIO

from rae_node.errors import TaskFailure
from rae_node.supervisor import process_tree
from rae_node.supervisor.safe_open import Refused, open_inside
from rae_protocol.models import LeasedInput

_PIECE = 1024 * 1024
LOGS = ("exec.log", "stdout", "stderr")
FOLDERS = ("input", "work", "output", "logs", "tmp", "shm")
# Below a workspace: what a runner's child is to do, and what it leaves.
CALL, NOTE = "logs/call.json", "logs/return.json"
INSIDE = Path("/workdir")  # A12: where a box shows the workspace


@dataclass(frozen=True, slots=True)
class Workspace:
    """`workdir/<task_id>.<attempt>/{input,work,output,logs}`, and what stands in for /tmp.

    `boxed`: its task sees it as /workdir. `opener`: who opens the task's files, while it is there.
    """

    path: Path
    boxed: bool = False
    opener: Callable[[str, str], int | None] | None = None

    @classmethod
    def create(cls, workdir: Path, task_id: str, attempt: int, *, boxed: bool = False) -> Workspace:
        """Make it, empty; its group is the tasks' where that is another user's. Raises OSError."""
        path = workdir / f"{task_id}.{attempt}"
        process_tree.wipe(str(path))
        for folder in (path, *(path / name for name in FOLDERS)):
            _make(folder)
        return cls(path, boxed)

    @property
    def seen(self) -> Path:
        """What its task calls it."""
        return INSIDE if self.boxed else self.path

    @property
    def input(self) -> Path:
        """Inputs as they came."""
        return self.path / "input"

    @property
    def work(self) -> Path:
        """Where the program runs; holds a copy of every input."""
        return self.path / "work"

    @property
    def output(self) -> Path:
        """Where artifacts are looked up first."""
        return self.path / "output"

    @property
    def logs(self) -> Path:
        """exec.log, stdout, stderr and the runners' own notes."""
        return self.path / "logs"

    def target(self, name: str) -> Path:
        """Where an input goes; its folders are made. Raises OSError."""
        path = self.input / name
        _make_above(path)
        path.unlink(missing_ok=True)
        return path

    def settle(self, name: str, expected: LeasedInput, look: Callable[[], None]) -> int:
        """Copy an input that was written into work/, and check it; returns its size.

        `look` is called with each piece and may raise, to stop.

        Raises TaskFailure E_INPUT when it is not what the task's sender meant; OSError.
        """
        path, copy, digest = self.input / name, self.work / name, hashlib.sha256()
        _make_above(copy)
        with path.open("rb") as given, copy.open("wb") as out:
            while piece := given.read(_PIECE):
                look()
                digest.update(piece)
                out.write(piece)
        if expected.sha256 not in {None, digest.hexdigest()}:
            raise TaskFailure(
                "E_INPUT", f"Input '{name}' has another SHA-256 than it should; upload it again"
            )
        path.chmod(0o640)
        copy.chmod(0o660)
        return path.stat().st_size

    def open(self, folder: str, name: str) -> BinaryIO | None:
        """A plain file below one of its folders; None when it is not there.

        Raises TaskFailure E_ARTIFACT for links and special files; OSError.
        """
        file = (self.opener or partial(_open_inside, self.path))(folder, name)
        if file is None:
            return None
        info = os.fstat(file)
        if stat.S_ISREG(info.st_mode) and info.st_nlink == 1:
            return os.fdopen(file, "rb")
        os.close(file)
        raise TaskFailure("E_ARTIFACT", f"'{name}' is no plain file with one name; write a copy")

    def collect(self, name: str, target: Path, max_bytes: int) -> tuple[int, str] | None:
        """Copy an artifact out of output/ or work/: (size, SHA-256); None when neither has it.

        Raises TaskFailure E_ARTIFACT for links, special files and too large ones; OSError.
        """
        found = self.copy_out("output", name, target, max_bytes)
        return found or self.copy_out("work", name, target, max_bytes)

    def copy_out(
        self, folder: str, name: str, target: Path, max_bytes: int
    ) -> tuple[int, str] | None:
        """As `collect`, out of one folder."""
        source = self.open(folder, name)
        if source is None:
            return None
        with source, target.open("xb") as out:
            digest, size = hashlib.sha256(), 0
            while piece := source.read(_PIECE):
                size += len(piece)
                if size > max_bytes:
                    limit = f"{max_bytes / 2**20:g} MiB"
                    text = f"'{name}' is larger than its max_mb, {limit}; raise that, or write less"
                    raise TaskFailure("E_ARTIFACT", text)
                digest.update(piece)
                out.write(piece)
            out.flush()
            os.fsync(out.fileno())
        return size, digest.hexdigest()

    def tail(self, max_bytes: int) -> str:
        """The last output of the program, as text; empty when it removed that. Raises OSError."""
        handle = self.open_log("exec.log")
        if handle is None:
            return ""
        with handle:
            handle.seek(max(0, os.fstat(handle.fileno()).st_size - max_bytes))
            return handle.read(max_bytes).decode(errors="replace").strip()

    def head(self, name: str, max_bytes: int) -> tuple[str, bool]:
        """The first bytes of logs/NAME as text, and whether there is more. Raises OSError."""
        handle = self.open_log(name)
        if handle is None:
            return "", False
        with handle:
            data = handle.read(max_bytes + 1)
        return data[:max_bytes].decode(errors="replace"), len(data) > max_bytes

    def open_log(self, name: str) -> BinaryIO | None:
        """logs/NAME; None when the task removed it or put something else there. Raises OSError."""
        try:
            return self.open("logs", name)
        except (TaskFailure, TimeoutError):  # or the supervisor, who opens it, is gone
            return None

    def has_logs(self) -> bool:
        """Whether the task left its logs as they were. Raises OSError."""
        for name in LOGS:
            handle = self.open_log(name)
            if handle is None:
                return False
            handle.close()
        return True

    def read_note(self, name: str, max_bytes: int) -> bytes | None:
        """A file that a runner's child left in logs/; None when there is none.

        Raises TaskFailure E_ARTIFACT when it is too large or no plain file.
        """
        handle = self.open("logs", name)
        if handle is None:
            return None
        with handle:
            data = handle.read(max_bytes + 1)
        if len(data) > max_bytes:
            raise TaskFailure(
                "E_ARTIFACT", f"The returned value has more than {max_bytes} bytes; use an artifact"
            )
        return data


def _make(folder: Path) -> None:
    """A folder that its group may use: the tasks', by the set-group-ID bit of what is above."""
    folder.mkdir(mode=0o770)
    folder.chmod(stat.S_IMODE(folder.stat().st_mode) | 0o770)


def _make_above(file: Path) -> None:
    """The folders that a file needs."""
    for folder in reversed([above for above in file.parents if not above.exists()]):
        _make(folder)


def inline_bytes(name: str, given: LeasedInput) -> bytes:
    """The content of an inline input. Raises TaskFailure E_INPUT."""
    text = given.inline or ""
    wanted = "base64" if given.encoding == "base64" else "text"
    try:
        return base64.b64decode(text, validate=True) if wanted == "base64" else text.encode()
    except ValueError as error:
        raise TaskFailure("E_INPUT", f"Input '{name}' is not valid {wanted}") from error


def _open_inside(workspace: Path, folder: str, name: str) -> int | None:
    """As a supervisor opens it. Raises TaskFailure E_ARTIFACT, OSError."""
    try:
        return open_inside(str(workspace), folder, name)
    except Refused as error:
        raise TaskFailure("E_ARTIFACT", str(error)) from error
