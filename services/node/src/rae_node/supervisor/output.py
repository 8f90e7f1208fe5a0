"""What a task says: pumped by its supervisor into files, and counted. Standard library only."""

from __future__ import annotations

import json
import os
import select
from typing import Any

MAX_LOG_BYTES = 10 * 1024 * 1024
_LOOKED_AT = 8  # of a flood of lines that say nothing, only the last ones cost time


def last_note(lines: list[bytes]) -> dict[str, Any] | None:
    """The progress that the last lines tell; None when they tell none."""
    for line in reversed(lines[-_LOOKED_AT:]):
        try:
            note = json.loads(line[:4096])
            return {"pct": float(note["pct"]), "note": str(note["note"])[:500]}
        except (ValueError, KeyError, TypeError, OverflowError, RecursionError):
            continue
    return None


class Outputs:
    """The task's stdout and stderr: each in its file, both in exec.log, all of it counted."""

    def __init__(self, folder: str, limit: int) -> None:
        self.limit, self.total = limit, 0
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW | os.O_CLOEXEC
        self._both = os.open(f"{folder}/exec.log", flags, 0o600)
        self._left = MAX_LOG_BYTES
        self.files: dict[int, int] = {}
        self.ends: dict[str, int] = {}
        for name in ("stdout", "stderr"):
            read, write = os.pipe2(os.O_CLOEXEC)
            os.set_blocking(read, False)
            self.files[read] = os.open(f"{folder}/{name}", flags, 0o600)
            self.ends[name] = write

    def pump(self, source: int) -> bool:
        """Move what is there; False when this end is closed."""
        try:
            data = os.read(source, 1 << 16)
        except BlockingIOError:
            return True
        if not data:
            return False
        room = max(0, self.limit - self.total)
        self.total += len(data)
        self._write(self.files[source], data[:room])
        self._write(self._both, data[: min(room, self._left)])
        self._left = max(0, self._left - len(data))
        return True

    def drain(self) -> None:
        """What the dead left in the pipes, as far as the disk takes it."""
        for source in self.files:
            try:
                while select.select([source], [], [], 0)[0] and self.pump(source):
                    pass
            except OSError:
                return

    def peek(self) -> str:
        """The first words on stderr, before anything is pumped; for a problem's text."""
        try:
            return os.read(list(self.files)[1], 500).decode(errors="replace").strip()
        except OSError:
            return ""

    def said(self) -> str:
        """The last words on both, after all of it was pumped; for a problem's text."""
        start = max(0, os.fstat(self._both).st_size - 500)
        return os.pread(self._both, 500, start).decode(errors="replace").strip()

    @staticmethod
    def _write(target: int, data: bytes) -> None:
        while data:
            data = data[os.write(target, data) :]
