"""What must still reach control: results and hand-backs, each a folder that survives a crash."""

from __future__ import annotations

import json
import shutil
import threading
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rae_node.config.layout import sync_folder, write_file
from rae_node.errors import listed
from rae_node.telemetry.log import EventLog
from rae_protocol.models import LeaseRef, Result

RECORD = "record.json"
_PART = ".part"


@dataclass(frozen=True, slots=True)
class Entry:
    """One message to deliver. `body` is a Result, or the fields of a yield."""

    kind: Literal["result", "yield"]
    lease: LeaseRef
    body: dict[str, Any]
    folder: Path

    def result(self) -> Result:
        """The result. Raises pydantic's ValidationError."""
        return Result.model_validate(self.body)

    def artifacts(self) -> list[tuple[str, Path]]:
        """(name, file) of the artifacts."""
        names = [item["name"] for item in self.body.get("artifacts", [])]
        return [(name, self.folder / str(number)) for number, name in enumerate(names)]


class Spool:
    """Entries by lease, on disk until they are delivered or dropped. Thread-safe."""

    def __init__(self, folder: Path, log: EventLog) -> None:
        self._folder, self._log = folder, log
        self._lock = threading.Lock()
        self._entries: dict[str, Entry] = {}
        self._taken: set[str] = set()
        self._bytes: dict[str, int] = {}

    def load(self) -> None:
        """Read what an earlier agent left; what it did not finish writing goes. Raises OSError."""
        for path in sorted(self._folder.iterdir(), key=lambda item: item.stat().st_mtime):
            try:
                if path.name.endswith(_PART):
                    raise ValueError("not finished")
                data = json.loads((path / RECORD).read_text(encoding="utf-8"))
                lease = LeaseRef.model_validate(data["lease"])
                entry = Entry(data["kind"], lease, data["body"], path)
                if entry.kind == "result":
                    entry.result()
                if missing := [name for name, file in entry.artifacts() if not file.exists()]:
                    raise ValueError(f"artifacts are missing: {listed(missing)}")
                self._entries[lease.lease_id] = entry
                self._bytes[lease.lease_id] = _size(path)
            except (
                OSError, ValueError, KeyError, TypeError, RecursionError, OverflowError,
            ) as error:  # fmt: skip
                self._log.warning("spool_entry_unreadable", entry=path.name, error=str(error))
                shutil.rmtree(path, ignore_errors=True)

    def staging(self, lease: LeaseRef) -> Path:
        """A folder to copy artifacts into, as files 0, 1, …. Raises OSError."""
        path = self._folder / f"{lease.lease_id}{_PART}"
        shutil.rmtree(path, ignore_errors=True)
        path.mkdir(mode=0o700)
        return path

    def put(self, kind: Literal["result", "yield"], lease: LeaseRef, body: dict[str, Any]) -> None:
        """Keep a message, on disk before this returns; replaces one of the same lease.

        A result is never replaced by a yield: the work is done. Raises OSError.
        """
        known = self._entries.get(lease.lease_id)
        if kind == "yield" and known is not None and known.kind == "result":
            return
        part, final = self._folder / f"{lease.lease_id}{_PART}", self._folder / lease.lease_id
        record = {"kind": kind, "lease": lease.model_dump(), "body": body}
        try:
            part.mkdir(mode=0o700, exist_ok=True)
            write_file(part / RECORD, json.dumps(record))
            with self._lock:
                if final.exists():
                    shutil.rmtree(final)
                part.rename(final)
                sync_folder(self._folder)
                self._entries[lease.lease_id] = Entry(kind, lease, body, final)
                self._bytes[lease.lease_id] = _size(final)
        except OSError:  # most likely the disk is full: leave nothing half-written on it
            self.discard_staging(lease)
            raise

    def discard_staging(self, lease: LeaseRef) -> None:
        """Forget artifacts that will not be sent."""
        shutil.rmtree(self._folder / f"{lease.lease_id}{_PART}", ignore_errors=True)

    def take(self, lease_id: str | None = None) -> Entry | None:
        """The oldest entry (or this one) for delivery, unless somebody delivers it already."""
        with self._lock:
            for key, entry in self._entries.items():
                if key not in self._taken and lease_id in {None, key}:
                    self._taken.add(key)
                    return entry
        return None

    def give_back(self, entry: Entry) -> None:
        """It could not be delivered now: the others come first."""
        with self._lock:
            key = entry.lease.lease_id
            if self._entries.get(key) is entry:
                self._entries[key] = self._entries.pop(key)
            self._taken.discard(key)

    def remove(self, entry: Entry) -> None:
        """Control has it, or must not have it."""
        with self._lock:
            current = self._entries.get(entry.lease.lease_id)
            if current is entry:
                del self._entries[entry.lease.lease_id]
                self._bytes.pop(entry.lease.lease_id, None)
                shutil.rmtree(entry.folder, ignore_errors=True)
            self._taken.discard(entry.lease.lease_id)

    def leases(self) -> Sequence[LeaseRef]:
        """The leases of everything undelivered."""
        with self._lock:
            return [entry.lease for entry in self._entries.values()]

    @property
    def size(self) -> int:
        """Bytes that wait; what is not delivered keeps the node from taking more work."""
        with self._lock:
            return sum(self._bytes.values())

    def __len__(self) -> int:
        return len(self._entries)


def _size(folder: Path) -> int:
    return sum(file.stat().st_size for file in folder.iterdir())
