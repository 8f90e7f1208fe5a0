"""Blobs and logs: files, never rows. Big reads and writes go to gevent's thread pool."""

from __future__ import annotations

import hashlib
import os
import secrets
from collections.abc import Callable, Collection, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, TypeVar, cast

import gevent
from gevent.monkey import get_original
from gevent.threadpool import ThreadPool

from rae_control.storage.durable import sync_folder
from rae_protocol.errors import RaeError
from rae_protocol.folders import make_folder

T = TypeVar("T")
PIECE = 1024 * 1024


# Control's own, beside its files; nodes of `serve --dev` have theirs.
FOLDERS = ("blobs", "log", "logs", "redis", "run")
_FILES = ("ledger.*", "*.key", "credentials.*", "files.lock", "redis.sock", "restore.*",
          "before-*", "restore-*")  # fmt: skip


def close_to_others(data: Path) -> None:
    """Take away from others what an earlier version, or a looser umask, gave them of the folder.

    What lies in a closed folder needs nothing more.
    """
    found = [path for name in (*FOLDERS, *_FILES) for path in data.glob(name)]
    for path in found:
        if not path.is_symlink():  # what somebody put elsewhere is his business
            path.chmod(0o700 if path.is_dir() else 0o600)


def in_thread(function: Callable[..., T], *args: Any, pool: ThreadPool | None = None) -> T:
    """Run what may block in a native thread while other greenlets go on."""
    value, error = (pool or gevent.get_hub().threadpool).apply(_outcome, (function, args))
    if error is not None:
        raise error
    return cast("T", value)


def _outcome(function: Callable[..., Any], args: Any) -> tuple[Any, Exception | None]:
    """Carry errors back as values: gevent prints those that a pool's thread raises."""
    try:
        return function(*args), None
    except Exception as error:
        return None, error


class BlobStore:
    """Content by its SHA-256, written once: to the side, fsynced, renamed."""

    def __init__(self, root: Path) -> None:
        self._root = root
        self._parts = root / "parts"
        make_folder(root, 0o700)
        make_folder(self._parts, 0o700)
        # Between threads of the pool, for microseconds: gevent's own lock is for greenlets.
        self._naming = get_original("_thread", "allocate_lock")()
        # Blobs that are being stored until their rows are written: by how many now, and so far.
        self._storing: dict[str, tuple[int, int]] = {}
        for leftover in self._parts.iterdir():
            leftover.unlink()

    @property
    def aside(self) -> Path:
        """Where files lie that are no blobs (yet), on the data's own disk."""
        return self._parts

    def path(self, sha256: str) -> Path:
        """Where a blob lies, or would lie."""
        return self._root / sha256[:2] / sha256

    @contextmanager
    def storing(self, names: Collection[str], unknown: Callable[[], list[str]]) -> Iterator[None]:
        """Around `add` and the writing of rows. Where that fails, bytes that no row knows go again.

        `unknown` says which of the names those are. What another caller stores meanwhile stays.
        """
        names = set(names)
        with self._naming:
            for name in names:
                now, ever = self._storing.get(name, (0, 0))
                self._storing[name] = now + 1, ever + 1
        try:
            yield
        except BaseException:
            # Before the look at the rows: who comes after this writes them later.
            alone = {name: (1, self._storing[name][1]) for name in names}
            in_thread(self._drop, {name: alone[name] for name in unknown()} if names else {})
            raise
        finally:
            with self._naming:
                for name in names:
                    now, ever = self._storing.pop(name)
                    if now > 1:
                        self._storing[name] = now - 1, ever

    def _drop(self, names: Mapping[str, tuple[int, int]]) -> None:
        for name, alone in names.items():
            with self._naming:
                if self._storing[name] == alone:
                    self.path(name).unlink(missing_ok=True)

    def add(self, source: IO[bytes], limit: int, expected: str | None = None) -> tuple[str, int]:
        """Store what the stream holds; returns (sha256, size).

        Raises RaeError `body_too_large`, `blob_mismatch`, or `disk_low` when it cannot be written.
        """
        try:
            return in_thread(self._add, source, limit, expected)
        except OSError as error:
            raise RaeError("disk_low", f"the blob cannot be written: {error.strerror}") from error

    def _add(self, source: IO[bytes], limit: int, expected: str | None) -> tuple[str, int]:
        part = self._parts / secrets.token_hex(16)
        digest, size = hashlib.sha256(), 0
        try:
            with part.open("xb") as target:
                while piece := source.read(PIECE):
                    size += len(piece)
                    if size > limit:
                        raise RaeError("body_too_large", f"more than {limit} bytes")
                    digest.update(piece)
                    target.write(piece)
                target.flush()
                os.fsync(target.fileno())
            name = digest.hexdigest()
            if expected is not None and name != expected:
                raise RaeError("blob_mismatch", f"the bytes hash to {name}")
            final = self.path(name)
            make_folder(final.parent, 0o700)
            with self._naming:
                # A blob that the disk has damaged is healed by its next upload.
                new = not final.exists() or final.stat().st_size != size
                if new:
                    part.rename(final)
                else:
                    os.utime(final)  # young again: `remove` leaves it to its new owner
            if new:
                sync_folder(final.parent)
                sync_folder(self._root)
        finally:
            part.unlink(missing_ok=True)
        return name, size

    def older(self, before: float) -> list[str]:
        """The blobs that no caller has stored since (unix seconds)."""
        return in_thread(self._older, before)

    def _older(self, before: float) -> list[str]:
        # A name that is no hash is not a blob's: left alone.
        found = self._root.glob("[0-9a-f][0-9a-f]/" + "[0-9a-f]" * 64)
        return [path.name for path in found if path.stat().st_mtime < before]

    def remove(self, sha256: str, before: float) -> bool:
        """Remove a blob unless somebody has stored the same bytes since."""
        return in_thread(self._remove, self.path(sha256), before)

    def _remove(self, path: Path, before: float) -> bool:
        with self._naming:
            old = path.stat().st_mtime < before
            if old:
                path.unlink()
        return old


class LogStore:
    """One file for each attempt's log; chunks are written at their offset, so twice is harmless."""

    def __init__(self, root: Path, max_bytes: int) -> None:
        self._root = root
        self._max = max_bytes
        make_folder(root, 0o700)

    def write(self, task_id: str, attempt: int, offset: int, data: bytes) -> None:
        """Write a chunk; what goes beyond the limit is cut off.

        Not on the disk until `sync`. Raises RaeError `log_gap`, `disk_low`.
        """
        data = data[: max(0, self._max - offset)]
        if not data:
            return
        try:
            in_thread(self._write, self._path(task_id, attempt), offset, data)
        except OSError as error:
            raise RaeError("disk_low", f"the log cannot be written: {error.strerror}") from error

    def sync(self, task_id: str, attempt: int) -> None:
        """Make the log durable, if there is one. Raises RaeError `disk_low`."""
        path = self._path(task_id, attempt)
        if not path.exists():  # most tasks have none: a thread would cost more than this look
            return
        try:
            in_thread(self._sync, path)
        except OSError as error:
            raise RaeError("disk_low", f"the log cannot be written: {error.strerror}") from error

    def read(self, task_id: str, attempt: int, offset: int, limit: int) -> bytes:
        """Up to `limit` bytes from an offset; empty where nothing is (yet)."""
        return in_thread(self._read, self._path(task_id, attempt), offset, limit)

    def remove(self, task_id: str, attempts: int) -> None:
        """Forget a task's logs."""
        for attempt in range(1, attempts + 1):
            self._path(task_id, attempt).unlink(missing_ok=True)

    def older(self, before: float) -> dict[str, int]:
        """The tasks with a log without a write since, each with its last attempt."""
        found: dict[str, int] = {}
        for path in self._root.glob("*.*.log"):
            task_id, attempt = path.stem.rsplit(".", 1)
            if attempt.isdecimal() and path.stat().st_mtime < before:
                found[task_id] = max(found.get(task_id, 0), int(attempt))
        return found

    def _path(self, task_id: str, attempt: int) -> Path:
        return self._root / f"{task_id}.{attempt}.log"

    @staticmethod
    def _write(path: Path, offset: int, data: bytes) -> None:
        handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            # A hole would read as zeros. A power cut may have taken what was stored and answered.
            size = os.fstat(handle).st_size
            if offset > size:
                raise RaeError("log_gap", f"the log has only {size} bytes", offset=size)
            # A disk that is nearly full takes less than it is given.
            while data:
                written = os.pwrite(handle, data, offset)
                data, offset = data[written:], offset + written
        finally:
            os.close(handle)

    def _sync(self, path: Path) -> None:
        with path.open("rb") as handle:
            os.fsync(handle)
        sync_folder(self._root)

    @staticmethod
    def _read(path: Path, offset: int, limit: int) -> bytes:
        try:
            with path.open("rb") as handle:
                handle.seek(offset)
                return handle.read(limit)
        except FileNotFoundError:
            return b""
