"""The agent's own log: one stable event name a line, JSON unless a person watches."""

from __future__ import annotations

import json
import sys
import threading
from datetime import datetime, timedelta, timezone
from pathlib import Path
from typing import Any, TextIO

_SECRET_WORDS = ("secret", "token", "signature", "authorization")


class EventLog:
    """Writes events; safe from every thread. A broken stream is no reason to stop."""

    def __init__(self, node_id: str, stream: TextIO | None = None) -> None:
        self._node_id = node_id
        self._stream = sys.stderr if stream is None else stream
        self._plain = self._stream.isatty()
        self._lock = threading.Lock()

    def info(self, event: str, *, task_id: str | None = None, **attrs: Any) -> None:
        """What happens in a good day."""
        self._write("info", event, task_id, attrs)

    def warning(self, event: str, *, task_id: str | None = None, **attrs: Any) -> None:
        """What the node gets over by itself."""
        self._write("warning", event, task_id, attrs)

    def error(self, event: str, *, task_id: str | None = None, **attrs: Any) -> None:
        """What somebody should look at."""
        self._write("error", event, task_id, attrs)

    def _write(self, level: str, event: str, task_id: str | None, attrs: dict[str, Any]) -> None:
        shown = {
            key: "(hidden)" if any(word in key.lower() for word in _SECRET_WORDS) else value
            for key, value in attrs.items()
        }
        now = datetime.now(timezone.utc)
        if self._plain:
            words = " ".join(f"{key}={value}" for key, value in shown.items())
            line = f"{now:%H:%M:%S} {level:7} {event} {task_id or ''} {words}".rstrip()
        else:
            line = json.dumps(
                {
                    "ts": now.isoformat(timespec="milliseconds"),
                    "level": level,
                    "node_id": self._node_id,
                    "task_id": task_id,
                    "event": event,
                    "attrs": shown,
                },
                default=str,
            )
        with self._lock:
            try:
                self._stream.write(line + "\n")
                self._stream.flush()
            except (OSError, ValueError):
                return


class DecisionLog:
    """Every decision of the guard as a JSON line, a file a day, seven days kept (B6)."""

    def __init__(self, folder: Path, keep_days: int = 7) -> None:
        self._folder, self._keep = folder, timedelta(days=keep_days)
        self._day: str | None = None

    def write(self, unix: float, entry: dict[str, Any]) -> None:
        """Add one entry; `unix` is its time. Raises OSError."""
        at = datetime.fromtimestamp(unix, tz=timezone.utc)
        self._rotate(at)
        line = json.dumps({"ts": at.isoformat(timespec="milliseconds"), **entry})
        with (self._folder / "decisions.jsonl").open("a", encoding="utf-8") as handle:
            handle.write(line + "\n")

    def _rotate(self, at: datetime) -> None:
        day = f"{at:%Y-%m-%d}"
        if self._day == day:
            return
        self._day = day
        current = self._folder / "decisions.jsonl"
        if current.exists():
            written = datetime.fromtimestamp(current.stat().st_mtime, tz=timezone.utc)
            if f"{written:%Y-%m-%d}" != day:
                current.replace(self._folder / f"decisions-{written:%Y-%m-%d}.jsonl")
        oldest = f"decisions-{at - self._keep:%Y-%m-%d}.jsonl"
        for file in self._folder.glob("decisions-*.jsonl"):
            if file.name < oldest:
                file.unlink()
