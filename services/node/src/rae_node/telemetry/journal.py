"""What the guard decided and what the node did, for the owner; it never leaves this machine."""

from __future__ import annotations

import contextlib
import json
import math
import os
import shutil
import threading
from dataclasses import replace
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any

from rae_node.config.layout import write_file
from rae_node.host.moments import Moment, left_s, moment_of, now_on
from rae_protocol.clock import Clock

_CURRENT = "decisions.jsonl"
_KEPT = "decisions-kept.json"
_SWEEP_S = 3600.0
_PIECE = 256 * 1024


class Journal:
    """Decisions, tasks and logins as JSON lines, a file a day, seven days kept (B6). Thread-safe.

    Each line has `ts` and `event`: `decision`, `task_begins`, `task_ends`, `seat` or `agent`. No
    step of the wall clock ends a file's seven days, see `moments`.
    """

    def __init__(self, folder: Path, clock: Clock, keep_days: int = 7) -> None:
        self._folder, self._clock, self._keep_s = folder, clock, keep_days * 86400.0
        self._day: str | None = None
        self._swept_at = -math.inf
        self._lock = threading.Lock()

    def write(self, unix: float, event: str, **facts: Any) -> None:
        """Add one entry; `unix` is its time. Raises OSError."""
        at = datetime.fromtimestamp(unix, tz=timezone.utc)
        line = json.dumps({"ts": at.isoformat(timespec="milliseconds"), "event": event, **facts})
        with self._lock:
            self._rotate(at)
            self._sweep()
            with (self._folder / _CURRENT).open("a", encoding="utf-8") as handle:
                handle.write(line + "\n")

    def try_write(self, unix: float, event: str, **facts: Any) -> None:
        """The same for what is not worth a failure: a full disk loses the entry."""
        with contextlib.suppress(OSError):
            self.write(unix, event, **facts)

    def last(self, count: int) -> list[dict[str, Any]]:
        """The newest entries, oldest first; what is no entry is left out. Raises OSError."""
        found: list[dict[str, Any]] = []
        dated = sorted(self._folder.glob("decisions-*.jsonl"), reverse=True)
        for file in (self._folder / _CURRENT, *dated):
            if len(found) < count and file.exists():
                lines = _last_lines(file, count - len(found))
                found = [*filter(None, map(_entry, lines)), *found]
        return found

    def _rotate(self, at: datetime) -> None:
        day = f"{at:%Y-%m-%d}"
        if self._day == day:
            return
        self._day = day
        current, now, known = self._folder / _CURRENT, now_on(self._clock), self._known()
        if current.exists():
            changed = current.stat().st_mtime
            written = datetime.fromtimestamp(changed, tz=timezone.utc)
            if f"{written:%Y-%m-%d}" != day:
                dated = self._folder / f"decisions-{written:%Y-%m-%d}.jsonl"
                wall, here = min(changed, now.wall), known.get(_CURRENT)
                of_this_boot = here is not None and here.boot_id == now.boot_id
                known[dated.name] = replace(now, wall=wall) if of_this_boot else Moment(wall)
                if dated.exists():  # the clock went back and forth: both parts are of that day
                    with current.open("rb") as part, dated.open("ab") as whole:
                        shutil.copyfileobj(part, whole)
                    current.unlink()
                else:
                    current.replace(dated)
        known[_CURRENT] = now
        there = {name: one.as_json() for name, one in known.items()
                 if name == _CURRENT or (self._folder / name).exists()}  # fmt: skip
        write_file(self._folder / _KEPT, json.dumps(there))

    def _known(self) -> dict[str, Moment]:
        """Until when each file was written, at the latest; the present one's: since when."""
        try:
            said = json.loads((self._folder / _KEPT).read_text(encoding="utf-8"))
            return {name: moment_of(one) for name, one in said.items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            return {}

    def _sweep(self) -> None:
        """Once in a while, remove what was kept long enough. Raises OSError."""
        now = now_on(self._clock)
        if now.boot - self._swept_at < _SWEEP_S:
            return
        self._swept_at, known = now.boot, self._known()
        for file in self._folder.glob("decisions-*.jsonl"):
            since = known.get(file.name) or Moment(_day_after(file))
            if left_s(since, self._keep_s, now) <= 0:
                file.unlink()


def _day_after(file: Path) -> float:
    """When the day in a file's name was over, unix seconds; its last change for another name."""
    try:
        day = datetime.strptime(file.stem, "decisions-%Y-%m-%d").replace(tzinfo=timezone.utc)
        return (day + timedelta(days=1)).timestamp()
    except (ValueError, OverflowError):
        return file.stat().st_mtime


def _last_lines(file: Path, count: int) -> list[str]:
    """Read from the end: a day may hold a lot. Raises OSError."""
    with file.open("rb") as handle:
        at, data = handle.seek(0, os.SEEK_END), b""
        while at and data.count(b"\n") <= count:
            size = min(at, _PIECE)
            at = handle.seek(at - size)
            data = handle.read(size) + data
    return data.decode(errors="replace").splitlines()[-count:]


def _entry(line: str) -> dict[str, Any] | None:
    """A line, unless a full disk or a power cut broke it."""
    try:
        found = json.loads(line)
    except (ValueError, RecursionError):
        return None
    return found if isinstance(found, dict) and "ts" in found else None
