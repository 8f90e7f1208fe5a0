"""`rae-control backup`, `restore` and `check`: beside a running control, never through it."""

from __future__ import annotations

import os
import re
import secrets
import shutil
import tarfile
import tempfile
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import apsw

from rae_control.errors import BackupDamaged, ConfigError, DiskFull, LedgerTooNew
from rae_control.files import PIECE
from rae_control.ledger import check
from rae_control.ledger.schema import SCHEMA_VERSION
from rae_control.ledger.store import (
    RESTORING,
    Ledger,
    Tx,
    connect,
    copy_to,
    lock_file,
    refuse_unfinished,
    sync_folder,
    told,
)
from rae_control.retention import files_held
from rae_protocol.clock import SystemClock
from rae_protocol.errors import RaeError

LEDGER = "ledger.db"
SECRETS = ("root.key", "root.previous.key", "credentials.json")
# What a restore replaces; anything else in the folder (nodes of `serve --dev`) is not its business.
_OURS = (LEDGER, f"{LEDGER}-wal", f"{LEDGER}-shm", "blobs", "logs", *SECRETS)
_MEMBER = re.compile(
    r"(ledger\.db|root\.key|root\.previous\.key|credentials\.json"
    r"|blobs/([0-9a-f]{2})/\2[0-9a-f]{62}|logs/[A-Za-z0-9][A-Za-z0-9_-]{0,63}\.[0-9]{1,7}\.log)"
)


def backup(data: Path, target: Path) -> int:
    """Write one archive with ledger, blobs, logs and keys; returns how many files it has.

    The ledger's snapshot comes first, and nothing it refers to is removed meanwhile.
    """
    source = existing(data)
    part = target.with_name(f"{target.name}.part")
    part.unlink(missing_ok=True)
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with (
            os.fdopen(handle, "wb") as out,
            tempfile.TemporaryDirectory(dir=target.absolute().parent) as folder,
            files_held(data),
        ):
            with closing(connect(source, readonly=True)) as db:
                copy_to(db, Path(folder) / LEDGER)
            with tarfile.open(fileobj=out, mode="w|", bufsize=PIECE) as tar:
                tar.add(Path(folder) / LEDGER, LEDGER)
                count = 1 + sum(_add(tar, data, name) for name in _members(Path(folder), data))
            out.flush()
            os.fsync(out.fileno())
        part.replace(target)
        sync_folder(target.absolute().parent)
    finally:
        part.unlink(missing_ok=True)
    return count


def _members(snapshot: Path, data: Path) -> Iterator[str]:
    with closing(connect(snapshot / LEDGER, readonly=True)) as db:
        for row in db.execute("SELECT sha256 FROM blobs UNION SELECT sha256 FROM artifacts"):
            yield f"blobs/{str(row[0])[:2]}/{row[0]}"
    yield from (f"logs/{path.name}" for path in (data / "logs").glob("*.log"))
    yield from SECRETS


def _add(tar: tarfile.TarFile, data: Path, name: str) -> bool:
    try:
        with (data / name).open("rb") as file:
            # The size is that of this moment: a log may grow while it is read.
            tar.addfile(tar.gettarinfo(arcname=name, fileobj=file), file)
    except FileNotFoundError:
        # Optional ones; a blob that is missing was missing before, and `check` says so.
        return False
    return True


def restore(archive: Path, data: Path, *, force: bool) -> list[check.Violation]:
    """Put a backup into a folder; returns what is wrong with it, and then keeps nothing.

    The ledger gets a new incarnation, so nodes stop what they run for the old one, and running
    tasks are given back when their leases end. Cut off at any moment, it can be run again.
    Raises ConfigError, LedgerLocked, BackupDamaged, DiskFull.
    """
    data.mkdir(mode=0o700, parents=True, exist_ok=True)
    with closing(lock_file(data / "ledger.lock")):
        for leftover in data.glob("restore-*"):
            shutil.rmtree(leftover)
        there = [path.name for path in data.iterdir() if path.name != "ledger.lock"]
        if there and not force:
            raise ConfigError(
                f"{data} is not empty; name another folder, or --force moves what is there aside"
            )
        fresh = data / f"restore-{secrets.token_hex(4)}"
        fresh.mkdir(mode=0o700)
        try:
            _unpack(archive, fresh)
            _new_incarnation(fresh / LEDGER)
            violations = check_folder(fresh, deep=True)
            if not violations:
                _swap(data, fresh, [name for name in _OURS if name in there])
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return violations


def _unpack(archive: Path, target: Path) -> None:
    try:
        with tarfile.open(archive, mode="r|") as tar:
            for member in tar:
                if not member.isreg() or not _MEMBER.fullmatch(member.name):
                    raise BackupDamaged(
                        f"{archive} holds {member.name!r}; this is no backup; name another file"
                    )
                path = target / member.name
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
                mode = 0o600 if path.name in {*SECRETS, LEDGER} else 0o640
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
                source = tar.extractfile(member)
                with os.fdopen(handle, "wb") as file:
                    if source is not None:
                        shutil.copyfileobj(source, file, PIECE)
                    file.flush()
                    os.fsync(file.fileno())
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no {archive}; name a file that `rae-control backup` wrote"
        ) from error
    except (tarfile.TarError, EOFError, FileExistsError) as error:
        raise BackupDamaged(f"{archive} cannot be read: {error}; take another backup") from error
    if not (target / LEDGER).exists() or not (target / "root.key").exists():
        raise BackupDamaged(f"{archive} has no ledger or no root key; take another backup")


def _new_incarnation(path: Path) -> None:
    # Opening it also brings a backup of an older version to today's schema.
    ledger = Ledger(path, SystemClock())
    try:
        outcomes, _ = ledger.transact([_restored])
        error = outcomes[0].error
        if isinstance(error, RaeError):
            raise DiskFull(
                f"{path} cannot be written ({error}), and nothing was restored; free some space on"
                " its disk, and run the restore again"
            ) from error
        if error is not None:
            raise BackupDamaged(
                f"the ledger in the backup is not ours ({error}); take another backup"
            ) from error
    finally:
        ledger.close()
    path.with_suffix(".lock").unlink()


def _restored(tx: Tx) -> None:
    tx.run("INSERT OR REPLACE INTO meta VALUES ('incarnation', ?)", secrets.token_hex(8))


def _swap(data: Path, fresh: Path, old: list[str]) -> None:
    """Move the old files aside and the new ones in, with a marker that outlives a kill."""
    for folder in [path for path in fresh.rglob("*") if path.is_dir()]:
        sync_folder(folder)
    marker = data / RESTORING
    if marker.exists():
        # This goes on where another one was cut off: what is not on its list, it put there.
        aside, *names = marker.read_text(encoding="ascii").split()
    else:
        aside, names = f"before-{fresh.name}", old
        part = fresh / marker.name
        with part.open("x", encoding="ascii") as file:
            file.write(" ".join([aside, *names]))
            file.flush()
            os.fsync(file.fileno())
        part.rename(marker)
        sync_folder(data)
    if names:
        (data / aside).mkdir(mode=0o700, exist_ok=True)
    for name in old:
        path, kept = data / name, data / aside / name
        if name in names and not kept.exists():
            path.rename(kept)
        elif path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    for path in fresh.iterdir():
        path.replace(data / path.name)
    for folder in [data, *data.glob(aside)]:
        sync_folder(folder)
    marker.unlink()
    sync_folder(data)


def check_folder(data: Path, *, deep: bool) -> list[check.Violation]:
    """Everything that is wrong with a data folder, also of a running control."""
    path = existing(data)
    with told(path), closing(connect(path, readonly=True)) as db, files_held(data):
        version = int(db.pragma("user_version"))
        if version > SCHEMA_VERSION:
            text = f"{data} has schema {version}, this program knows {SCHEMA_VERSION}"
            raise LedgerTooNew(f"{text}; run the newer version")
        if version < SCHEMA_VERSION:
            return [
                check.Violation(
                    "schema_is_current", f"schema {version}", "start control once: it migrates"
                )
            ]
        # One snapshot for all of it, while commits go on.
        db.execute("BEGIN")
        try:
            found = list(check.rows_problems(db))
            return found + list(check.blob_problems(db, data / "blobs", deep))
        except (apsw.CorruptError, apsw.SQLError, UnicodeDecodeError) as error:
            return [check.Violation("sqlite_integrity", str(error))]
        finally:
            with suppress(apsw.Error):
                db.execute("COMMIT")


def existing(data: Path) -> Path:
    """The folder's ledger. Raises ConfigError."""
    path = data / LEDGER
    refuse_unfinished(data)
    if not path.exists():
        raise ConfigError(f"there is no ledger in {data}; name control's folder with --data")
    return path
