"""`rae-control backup`, `restore` and `check`: beside a running control, never through it."""

from __future__ import annotations

import hashlib
import io
import json
import os
import re
import secrets
import shutil
import tarfile
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, TypeVar, cast

import apsw

from rae_control.core.hold import WAY_OUT
from rae_control.errors import BackupDamaged, ConfigError, ControlError, DiskFull, LedgerTooNew
from rae_control.ledger import check, hold
from rae_control.ledger.base import Row, Tx, fetch
from rae_control.ledger.schema import SCHEMA_VERSION
from rae_control.ledger.sqlite import (
    RESTORING,
    Ledger,
    connect,
    copy_to,
    ledger_errors,
    refuse_unfinished,
)
from rae_control.mesh.retention import files_held
from rae_control.storage.durable import lock_file, sync_folder
from rae_control.storage.files import PIECE
from rae_protocol.clock import Clock, SystemClock
from rae_protocol.errors import RaeError
from rae_protocol.folders import make_folder

LEDGER = "ledger.db"
SUMS = "SHA256SUMS.json"
SECRETS = ("root.key", "root.previous.key", "credentials.json")
T = TypeVar("T")
CLOCK = SystemClock()
_GAP = 1_000_000
_REVOKED_STAYS = "What was revoked in the ledger that was here is revoked in this one, too."
_REVOKE_AGAIN = (
    "There was no readable ledger here: what was revoked after the backup was made counts again;"
    " revoke it anew (`raectl nodes revoke`, `raectl tokens revoke`)."
)
_HOLD = (
    "Control leases no task until every agent that may still work for the lost past has reported,"
    " or until the longest lease has passed (max_lease_ttl_s); `/readyz` and `raectl why` show"
    f" until when. If all nodes are off: {WAY_OUT}."
)
# What a restore replaces; anything else in the folder (nodes of `serve --dev`) is not its business.
_OURS = (LEDGER, f"{LEDGER}-wal", f"{LEDGER}-shm", "blobs", "logs", *SECRETS)
_MEMBER = re.compile(
    r"(ledger\.db|root\.key|root\.previous\.key|credentials\.json"
    r"|blobs/([0-9a-f]{2})/\2[0-9a-f]{62}|logs/[A-Za-z0-9][A-Za-z0-9_-]{0,63}\.[0-9]{1,7}\.log)"
)


@dataclass(frozen=True, slots=True)
class Replaced:
    """What the ledger that was there says: who must stay out, and where work may be alive."""

    nodes: Sequence[Row]
    tokens: Sequence[Row]
    past: hold.Past


def backup(data: Path, target: Path) -> int:
    """Write one archive with ledger, blobs, logs and keys; returns how many files it has.

    The ledger's snapshot comes first, and nothing it refers to is removed meanwhile.
    """
    source = existing(data)
    part = target.with_name(f"{target.name}.{secrets.token_hex(4)}.part")
    handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    try:
        with (
            os.fdopen(handle, "wb") as out,
            tempfile.TemporaryDirectory(
                prefix=f"{target.name}.", suffix=".part", dir=target.absolute().parent
            ) as folder,
            files_held(data),
        ):
            with closing(connect(source, readonly=True)) as db:
                copy_to(db, Path(folder) / LEDGER)
            with tarfile.open(fileobj=out, mode="w|", bufsize=PIECE) as tar:
                sums: dict[str, str] = {}
                _add(tar, Path(folder), LEDGER, sums)
                for name in _members(Path(folder), data):
                    _add(tar, data, name, sums)
                # The last one: an archive that ends early, or was changed, is found by it.
                text = json.dumps(sums).encode()
                last = tarfile.TarInfo(SUMS)
                last.size, last.mode = len(text), 0o600
                tar.addfile(last, io.BytesIO(text))
            out.flush()
            os.fsync(out.fileno())
        part.replace(target)
        sync_folder(target.absolute().parent)
    finally:
        part.unlink(missing_ok=True)
    return len(sums)


def _members(snapshot: Path, data: Path) -> Iterator[str]:
    with closing(connect(snapshot / LEDGER, readonly=True)) as db:
        for row in db.execute("SELECT sha256 FROM blobs UNION SELECT sha256 FROM artifacts"):
            yield f"blobs/{str(row[0])[:2]}/{row[0]}"
    names = (f"logs/{path.name}" for path in (data / "logs").glob("*.log"))
    # What a restore would not take is not ours.
    yield from filter(_MEMBER.fullmatch, names)
    yield from SECRETS


class _Hashing:
    """A file whose bytes are hashed as they pass."""

    def __init__(self, file: IO[bytes]) -> None:
        self._file, self.digest = file, hashlib.sha256()

    def read(self, size: int = -1) -> bytes:
        """The next bytes."""
        piece = self._file.read(size)
        self.digest.update(piece)
        return piece


def _add(tar: tarfile.TarFile, data: Path, name: str, sums: dict[str, str]) -> None:
    try:
        with (data / name).open("rb") as file:
            # The size is that of this moment: a log may grow while it is read.
            source = _Hashing(file)
            tar.addfile(tar.gettarinfo(arcname=name, fileobj=file), cast("IO[bytes]", source))
            sums[name] = source.digest.hexdigest()
    except FileNotFoundError:
        pass  # Optional ones; a blob that is missing was missing before, and `check` says so.


def restore(
    archive: Path,
    data: Path,
    *,
    force: bool,
    keys: bool = True,
    nodes_are_dead: bool = False,
    clock: Clock = CLOCK,
    tell: Callable[[str], None] = print,
) -> list[check.Violation]:
    """Put a backup into a folder; returns what is wrong with it, and then keeps nothing.

    The ledger gets a new incarnation, so nodes stop what they run for the old one, and no lease is
    given until all of that has ended (core/hold.py); `nodes_are_dead`: the operator says that it
    has. Cut off at any moment, a restore can be run again.
    Raises ConfigError, LedgerLocked, BackupDamaged, DiskFull.
    """
    make_folder(data, 0o700)
    with closing(lock_file(data / "ledger.lock")):
        for leftover in data.glob("restore-*"):
            shutil.rmtree(leftover)
        there = [path.name for path in data.iterdir() if path.name != "ledger.lock"]
        if there and not force:
            raise ConfigError(
                f"{data} is not empty; name another folder, or --force moves what is there aside"
            )
        replaced = _replaced(data)
        fresh = data / f"restore-{secrets.token_hex(4)}"
        fresh.mkdir(mode=0o700)
        try:
            _unpack(archive, fresh, keys=keys)
            held_from = None if nodes_are_dead else clock.boot()
            _in_ledger(
                fresh / LEDGER, clock, partial(_restored, replaced=replaced, held_from=held_from)
            )
            (fresh / LEDGER).with_suffix(".lock").unlink()
            violations = check_folder(fresh, deep=True)
            if not violations:
                _swap(data, fresh)
                tell(_REVOKED_STAYS if replaced else _REVOKE_AGAIN)
                if not nodes_are_dead:
                    tell(_HOLD)
        finally:
            shutil.rmtree(fresh, ignore_errors=True)
    return violations


def _unpack(archive: Path, target: Path, *, keys: bool) -> None:
    try:
        sums: dict[str, str] = {}
        written: object = None
        with tarfile.open(archive, mode="r|") as tar:
            for member in tar:
                source = tar.extractfile(member)
                if member.name == SUMS and source is not None:
                    written = json.load(source)
                    break
                if not member.isreg() or not _MEMBER.fullmatch(member.name):
                    raise BackupDamaged(
                        f"{archive} holds {member.name!r}; this is no backup; name another file"
                    )
                path = target / member.name
                make_folder(path.parent, 0o700)
                handle = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
                with os.fdopen(handle, "wb") as file:
                    if source is not None:
                        hashing = _Hashing(source)
                        shutil.copyfileobj(hashing, file, PIECE)
                        sums[member.name] = hashing.digest.hexdigest()
                    file.flush()
                    os.fsync(file.fileno())
    except FileNotFoundError as error:
        raise ConfigError(
            f"there is no {archive}; name a file that `rae-control backup` wrote"
        ) from error
    except (tarfile.TarError, EOFError, FileExistsError, ValueError) as error:
        raise BackupDamaged(f"{archive} cannot be read: {error}; take another backup") from error
    if written != sums:
        raise BackupDamaged(
            f"{archive} is not what was written, or ends early; take another backup"
        )
    if not (target / LEDGER).exists():
        raise BackupDamaged(f"{archive} has no ledger; take another backup")
    if (target / "root.key").exists() != keys:
        raise BackupDamaged(
            f"{archive} holds the root key; leave --no-keys out" if not keys else
            f"{archive} has no root key; take another backup, or say --no-keys if control's"
            " credentials come from a vault, which must still have the same root key"
        )  # fmt: skip


def end_hold(data: Path) -> bool:
    """Lift the hold of an earlier restore, on the operator's word; whether there was one.

    Raises ConfigError, LedgerLocked while control runs, DiskFull.
    """
    return _in_ledger(existing(data), CLOCK, hold.end)


def _replaced(data: Path) -> Replaced | None:
    """What the ledger that is replaced knows; None when it cannot be read."""
    # Never one without its write-ahead log: what a killed restore began to move is moved first.
    path = (_move_aside(data) if (data / RESTORING).exists() else data) / LEDGER
    if not path.exists():
        return None
    try:
        with ledger_errors(path), closing(connect(path, readonly=True)) as db:
            return Replaced(
                fetch(db, "SELECT node_id, kind, trusted, epoch, revoked FROM nodes"
                          " WHERE epoch > 1"),
                fetch(db, "SELECT sha256, revoked_at FROM tokens WHERE revoked_at IS NOT NULL"),
                hold.past(db),
            )  # fmt: skip
    except ControlError:
        return None


def _in_ledger(path: Path, clock: Clock, change: Callable[[Tx], T]) -> T:
    # Opening it also brings a backup of an older version to today's schema.
    with closing(Ledger(path, clock)) as ledger:
        outcomes, _ = ledger.transact([change])
    error = outcomes[0].error
    if isinstance(error, RaeError):
        raise DiskFull(
            f"{path} cannot be written ({error}), and nothing was changed; free some space on"
            " its disk, and run the restore again"
        ) from error
    if error is not None:
        raise BackupDamaged(
            f"the ledger in the backup is not ours ({error}); take another backup"
        ) from error
    return cast("T", outcomes[0].value)


def _restored(tx: Tx, replaced: Replaced | None, held_from: float | None) -> None:
    known = None if replaced is None else replaced.past
    hold.begin(tx, secrets.token_hex(8), held_from, hold.past(tx.db), known)
    # Whoever reads on from a number of the lost past misses nothing of the new one.
    for table in ("events", "tasks"):
        if not tx.run("UPDATE sqlite_sequence SET seq = seq + ? WHERE name = ?", _GAP, table):
            tx.run("INSERT INTO sqlite_sequence VALUES (?, ?)", table, _GAP)
    for node in () if replaced is None else replaced.nodes:
        tx.run(
            "INSERT INTO nodes (node_id, kind, trusted, epoch, revoked) VALUES (?, ?, ?, ?, ?)"
            " ON CONFLICT DO UPDATE SET epoch = excluded.epoch, revoked = excluded.revoked,"
            " online = 0, token_sha256 = NULL, old_token_sha256 = NULL"
            " WHERE excluded.epoch > epoch",
            *node.values(),
        )
    for token in () if replaced is None else replaced.tokens:
        tx.run(
            "UPDATE tokens SET revoked_at = ? WHERE sha256 = ? AND revoked_at IS NULL",
            token["revoked_at"], token["sha256"],
        )  # fmt: skip


def _swap(data: Path, fresh: Path) -> None:
    """Move the old files aside and the new ones in, with a marker that outlives a kill."""
    for folder in [path for path in fresh.rglob("*") if path.is_dir()]:
        sync_folder(folder)
    marker = data / RESTORING
    if not marker.exists():
        part = fresh / marker.name
        with part.open("x", encoding="ascii") as file:
            names = [name for name in _OURS if (data / name).exists()]
            file.write(" ".join([f"before-{fresh.name}", *names]))
            file.flush()
            os.fsync(file.fileno())
        part.rename(marker)
        sync_folder(data)
    aside = _move_aside(data)
    for path in [data / name for name in _OURS if (data / name).exists()]:
        # Not on the marker's list: a restore that was cut off put it there.
        if path.is_dir():
            shutil.rmtree(path)
        else:
            path.unlink()
    for path in fresh.iterdir():
        path.replace(data / path.name)
    for folder in (data, aside):
        if folder.exists():
            sync_folder(folder)
    marker.unlink()
    sync_folder(data)


def _move_aside(data: Path) -> Path:
    """Move what the marker lists out of the way, as far as it is not yet."""
    name, *names = (data / RESTORING).read_text(encoding="ascii").split()
    aside = data / name
    if names:
        aside.mkdir(mode=0o700, exist_ok=True)
    for name in names:
        if not (aside / name).exists():
            (data / name).rename(aside / name)
    return aside


def check_folder(data: Path, *, deep: bool) -> list[check.Violation]:
    """Everything that is wrong with a data folder, also of a running control."""
    path = existing(data)
    with ledger_errors(path), closing(connect(path, readonly=True)) as db, files_held(data):
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
        # What it sorts may be larger than the memory that a chore has.
        db.pragma("temp_store", "file")
        found: list[check.Violation] = []
        try:
            found.extend(check.rows_problems(db))
            found.extend(check.blob_problems(db, data / "blobs", deep))
        except (apsw.CorruptError, apsw.SQLError, ValueError) as error:
            found.append(check.Violation("sqlite_integrity", str(error)))
        return found


def existing(data: Path) -> Path:
    """The folder's ledger. Raises ConfigError."""
    path = data / LEDGER
    refuse_unfinished(data)
    if not path.exists():
        raise ConfigError(f"there is no ledger in {data}; name control's folder with --data")
    return path
