"""The agent's own log: one stable event name a line, JSON unless a person watches."""

from __future__ import annotations

import contextlib
import json
import queue
import sys
import threading
from datetime import datetime, timezone
from logging import LogRecord, makeLogRecord
from logging.handlers import RotatingFileHandler
from typing import Any, TextIO

LEVELS = ("info", "warning", "error")
ROTATE_BYTES, ROTATE_KEEP = 50 * 1000 * 1000, 7  # C8
_QUEUED = 2000  # lines
_SECRET_WORDS = ("secret", "token", "signature", "authorization")


class LogFile(RotatingFileHandler):
    """A file that rotates. One that cannot be written now is opened afresh with the next line."""

    def __init__(self, path: str, max_bytes: int = ROTATE_BYTES, keep: int = ROTATE_KEEP) -> None:
        super().__init__(path, maxBytes=max_bytes, backupCount=keep, encoding="utf-8", delay=True)
        self.problem: BaseException | None = None  # of the last line

    def line(self, text: str) -> None:
        """Add a line, as far as that is possible."""
        self.problem = None
        self.emit(makeLogRecord({"msg": text}))

    def handleError(self, record: LogRecord) -> None:
        """A full disk, say."""
        self.problem = sys.exc_info()[1]
        stream, self.stream = self.stream, None  # as its own close does
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.close()


class EventLog:
    """Writes events; safe from every thread. A broken stream or file is no reason to stop.

    `as_json`: None is JSON unless a person watches; `file` gets each line, too.
    """

    def __init__(
        self,
        node_id: str,
        stream: TextIO | None = None,
        *,
        level: str = "info",
        as_json: bool | None = None,
        file: LogFile | None = None,
    ) -> None:
        self._node_id, self._file = node_id, file
        self._stream = sys.stderr if stream is None else stream
        self._plain = self._stream.isatty() if as_json is None else not as_json
        self._plain_file = as_json is False
        self._least = LEVELS.index(level)
        self._file_fails = False
        # A thread of its own writes: a pipe without a reader must not hold the guard.
        self._queue: queue.Queue[tuple[str, str] | threading.Event] = queue.Queue(_QUEUED)
        self._lost = 0
        threading.Thread(target=self._run, name="log", daemon=True).start()

    def info(self, event: str, *, task_id: str | None = None, **attrs: Any) -> None:
        """What happens in a good day."""
        self._write("info", event, task_id, attrs)

    def warning(self, event: str, *, task_id: str | None = None, **attrs: Any) -> None:
        """What the node gets over by itself."""
        self._write("warning", event, task_id, attrs)

    def error(self, event: str, *, task_id: str | None = None, **attrs: Any) -> None:
        """What somebody should look at."""
        self._write("error", event, task_id, attrs)

    def flush(self, timeout_s: float = 1.0) -> None:
        """Wait until everything before is written, at most so long."""
        done = threading.Event()
        with contextlib.suppress(queue.Full):
            self._queue.put_nowait(done)
            done.wait(timeout_s)

    def _write(self, level: str, event: str, task_id: str | None, attrs: dict[str, Any]) -> None:
        if LEVELS.index(level) < self._least:
            return
        shown = {
            key: "(hidden)" if any(word in key.lower() for word in _SECRET_WORDS) else value
            for key, value in attrs.items()
        }
        now = datetime.now(timezone.utc)
        words = " ".join(f"{key}={value}" for key, value in shown.items())
        plain = f"{now:%H:%M:%S} {level:7} {event} {task_id or ''} {words}".rstrip()
        body = {
            "ts": now.isoformat(timespec="milliseconds"),
            "level": level,
            "node_id": self._node_id,
            "task_id": task_id,
            "event": event,
            "attrs": shown,
        }
        line = json.dumps(body, default=str)
        try:
            self._queue.put_nowait((plain.replace("\n", "\\n"), line))
        except queue.Full:
            self._lost += 1

    def _run(self) -> None:
        while True:
            item = self._queue.get()
            if isinstance(item, threading.Event):
                item.set()
                continue
            plain, line = item
            with contextlib.suppress(OSError, ValueError):
                self._stream.write((plain if self._plain else line) + "\n")
                self._stream.flush()
            if self._file is not None:
                self._to_file(self._file, plain if self._plain_file else line)
            if self._lost and self._queue.qsize() < _QUEUED // 2:
                lost, self._lost = self._lost, 0
                self.warning("log_lines_lost", count=lost)

    def _to_file(self, file: LogFile, line: str) -> None:
        file.line(line)
        news = file.problem is not None and not self._file_fails
        self._file_fails = file.problem is not None
        if news:
            fix = "free space or fix logging.path; the lines meanwhile are on stderr only"
            self.warning("log_file_failed", error=str(file.problem), fix=fix)
