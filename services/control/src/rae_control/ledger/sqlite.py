"""The ledger's file: one writer with group commit, a few readers, one process.

Writers hand in functions of a `Tx`. A batch of them runs in one transaction, each in its own
savepoint, so that one fsync serves all and one mistake spoils nothing of the others.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import shutil
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from math import inf
from pathlib import Path
from typing import Any, TypeVar

import apsw

from rae_control.core.steady import Kept, SteadyClock
from rae_control.errors import (
    DiskFull,
    LedgerDamaged,
    LedgerTooNew,
    LedgerUnusable,
    RestoreUnfinished,
)
from rae_control.ledger.base import BATCH_S, Changes, Outcome, Tx
from rae_control.ledger.schema import MIGRATIONS, SCHEMA, SCHEMA_VERSION
from rae_control.storage.durable import lock_file, sync_folder
from rae_protocol.clock import Clock
from rae_protocol.errors import RaeError

T = TypeVar("T")
# SQLite needs a few pages to open the file at all.
LEAST_FREE = 1024 * 1024
READERS = 2
CLOCK = "clock"  # the key of `keep_clock` in `meta`
# Beside the ledger while a restore moves files: neither the old past nor the new one is whole.
RESTORING = "restore.unfinished"


class Ledger:
    """Opens, locks and migrates the file; runs batches in the one writer thread.

    Raises LedgerLocked when another process serves the same file, LedgerTooNew when a newer
    version wrote it.
    """

    def __init__(self, path: Path, clock: Clock, clock_settles_s: float = 3600.0) -> None:
        self.path = path
        self._clock = clock
        self._lock = lock_file(path.with_suffix(".lock"))
        try:
            refuse_unfinished(path.parent)
            self._writer = connect(path)
            with ledger_errors(path):
                self._prepare()
                self.incarnation = self.meta("incarnation")
                self.steady = SteadyClock(
                    clock.wall(), clock.boot(), self._kept_clock(), clock_settles_s,
                    clock.boot_id(),
                )  # fmt: skip
            # Opened now: later there may be no file descriptor left for them.
            self._readers = deque(connect(path, readonly=True) for _ in range(READERS))
        except BaseException:
            self._lock.close()
            raise

    def close(self) -> None:
        """Close the file and let another process in."""
        for db in (*self._readers, self._writer):
            db.close()
        self._lock.close()

    def meta(self, key: str) -> str:
        """A value of the ledger itself."""
        return str(self._writer.execute("SELECT value FROM meta WHERE key = ?", (key,)).get)

    def earliest(self) -> float:
        """It is at least so late, in unix seconds."""
        return self.steady.earliest(self._clock.wall(), self._clock.boot())

    def _kept_clock(self) -> Kept | None:
        row = self._writer.execute("SELECT value FROM meta WHERE key = ?", (CLOCK,)).fetchone()
        return None if row is None else Kept(**json.loads(row[0]))

    def transact(
        self, functions: Sequence[Callable[[Tx], Any]], most_s: float = inf
    ) -> tuple[list[Outcome[Any]], Changes]:
        """Run a batch durably: when this returns, everything that succeeded is on the disk.

        After `most_s` no further function begins: there are fewer outcomes than functions then.

        A function that raises RaeError is rolled back alone. An error of SQLite itself rolls the
        whole batch back: every caller gets `ledger_unavailable`.
        """
        db, changes, began = self._writer, Changes(), self._clock.boot()
        outcomes: list[Outcome[Any]] = []
        try:
            db.execute("BEGIN IMMEDIATE")
            for function in functions:
                outcomes.append(self._one(function, changes, began + BATCH_S))
                if self._clock.boot() - began > most_s:
                    break
            db.execute("COMMIT")
        except (apsw.FullError, apsw.IOError, apsw.BusyError) as error:
            if db.in_transaction:
                db.execute("ROLLBACK")
            failure = RaeError("ledger_unavailable", str(error), retry_after_s=2)
            return [Outcome(error=failure) for _ in functions], Changes()
        return outcomes, changes

    def _one(self, function: Callable[[Tx], Any], before: Changes, end: float) -> Outcome[Any]:
        db = self._writer
        wall, boot = self._clock.wall(), self._clock.boot()
        earliest, latest = self.steady.earliest(wall, boot), self.steady.latest(wall, boot)
        tx = Tx(db, wall, earliest, latest, before, lambda: self._clock.boot() < end)
        db.execute("SAVEPOINT one")
        try:
            value = function(tx)
        except (apsw.FullError, apsw.IOError, apsw.BusyError):
            raise
        except Exception as error:
            db.execute("ROLLBACK TO one")
            db.execute("RELEASE one")
            return Outcome(error=error)
        db.execute("RELEASE one")
        before.extend(tx.changes)
        return Outcome(value=value)

    def read(self, function: Callable[[apsw.Connection], T]) -> T:
        """Run a reading function on a connection of its own, in one snapshot."""
        try:
            db = self._readers.pop()
        except IndexError:
            db = connect(self.path, readonly=True)
        try:
            db.execute("BEGIN")
            try:
                return function(db)
            finally:
                db.execute("COMMIT")
        finally:
            self._readers.append(db)

    def _prepare(self) -> None:
        db = self._writer
        version = int(db.pragma("user_version"))
        if version > SCHEMA_VERSION:
            raise LedgerTooNew(
                f"{self.path} has schema {version}, this program knows {SCHEMA_VERSION}; "
                "run the newer version, or restore a backup"
            )
        if version == 0:
            with db:
                db.execute(SCHEMA)
                db.execute(
                    "INSERT INTO meta VALUES ('incarnation', ?), ('created_at', ?)",
                    (secrets.token_hex(8), str(self._clock.wall())),
                )
                db.pragma("user_version", SCHEMA_VERSION)
        elif version < SCHEMA_VERSION:
            copy_to(db, self.path.with_name(f"{self.path.name}.v{version}.bak"))
            with db:
                for step in range(version, SCHEMA_VERSION):
                    db.execute(MIGRATIONS[step])
                db.pragma("user_version", SCHEMA_VERSION)


def keep_clock(tx: Tx, kept: Kept) -> None:
    """Note what the clocks said, for the next start."""
    tx.run("INSERT OR REPLACE INTO meta VALUES (?, ?)", CLOCK, json.dumps(asdict(kept)))


def copy_to(db: apsw.Connection, target: Path) -> None:
    """A consistent copy of the whole ledger, on the disk under its name when this returns.

    One read transaction: commits go on beside it.
    """
    part = target.with_name(f"{target.name}.part")
    part.unlink(missing_ok=True)
    part.touch(mode=0o600)
    with ledger_errors(part):
        db.execute("VACUUM INTO ?", (str(part),))
    with part.open("rb") as handle:
        os.fsync(handle)
    part.replace(target)
    sync_folder(target.parent)


def refuse_unfinished(data: Path) -> None:
    """Raises RestoreUnfinished."""
    if (data / RESTORING).exists():
        raise RestoreUnfinished(
            f"a restore into {data} was cut off; run the same `rae-control restore` again, with"
            " --force"
        )


def connect(path: Path, *, readonly: bool = False) -> apsw.Connection:
    """A connection with our settings. Raises as `ledger_errors`."""
    with ledger_errors(path):
        return _open(path, readonly=readonly)


@contextlib.contextmanager
def ledger_errors(path: Path) -> Iterator[None]:
    """SQLite's errors as ours. Raises DiskFull, LedgerUnusable, LedgerDamaged."""
    try:
        yield
    except (apsw.FullError, apsw.IOError, apsw.CantOpenError, apsw.BusyError) as error:
        free = shutil.disk_usage(path.parent).free
        if free < LEAST_FREE or isinstance(error, apsw.FullError):
            raise DiskFull(
                f"{path} cannot be written: its disk has {free} bytes left. Free some space;"
                " control tries again by itself"
            ) from error
        raise LedgerUnusable(
            f"{path} cannot be used now ({error}); look at its disk, at who may read and write it,"
            " and at `ulimit -n`"
        ) from error
    except (apsw.Error, UnicodeDecodeError) as error:
        raise LedgerDamaged(f"{path} cannot be read ({error}); restore a backup") from error


def _open(path: Path, *, readonly: bool) -> apsw.Connection:
    flags = (
        apsw.SQLITE_OPEN_READONLY
        if readonly
        else apsw.SQLITE_OPEN_READWRITE | apsw.SQLITE_OPEN_CREATE
    )
    db = apsw.Connection(str(path), flags=flags)
    db.set_busy_timeout(5000)
    if not readonly:
        db.pragma("journal_mode", "wal")
        # FULL: a commit that was answered survives a power cut, not only a crash.
        db.pragma("synchronous", "full")
        db.pragma("wal_autocheckpoint", 4000)
    db.pragma("cache_size", -16000)
    db.pragma("temp_store", "memory")
    db.pragma("user_version")  # opens the file and its log, not only the name
    return db
