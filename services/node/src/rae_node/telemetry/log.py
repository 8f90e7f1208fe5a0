"""The agent's own log: one stable event name a line, JSON unless a person watches."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Callable
from datetime import datetime, timezone
from logging import Formatter, Logger, LogRecord, StreamHandler
from logging.handlers import RotatingFileHandler
from typing import TYPE_CHECKING, Any, TextIO

from rae_protocol.log import JsonFormatter, QueuedHandler, facts

if TYPE_CHECKING:
    TextHandler = StreamHandler[TextIO]
else:  # Python 3.10 has no subscript of it
    TextHandler = StreamHandler

ROTATE_BYTES, ROTATE_KEEP = 50 * 1000 * 1000, 7  # C8


class LogFile(RotatingFileHandler):
    """A file that rotates. One that cannot be written now is opened afresh with the next line."""

    def __init__(self, path: str, max_bytes: int = ROTATE_BYTES, keep: int = ROTATE_KEEP) -> None:
        super().__init__(path, maxBytes=max_bytes, backupCount=keep, encoding="utf-8", delay=True)
        self.failed: Callable[[str], None] = lambda error: None  # gets why, once until it works
        self._fails = self._failed = False  # this line, the one before

    def emit(self, record: LogRecord) -> None:
        """Add a line, as far as that is possible."""
        self._fails, self._failed = False, self._fails
        super().emit(record)

    def handleError(self, record: LogRecord) -> None:
        """A full disk, say."""
        self._fails = True
        if not self._failed:
            self.failed(str(sys.exc_info()[1]))
        stream, self.stream = self.stream, None  # as its own close does
        if stream is not None:
            with contextlib.suppress(OSError, ValueError):
                stream.close()


class _Stream(TextHandler):
    def handleError(self, record: LogRecord) -> None:
        """A broken stream is no reason to stop; it cannot report itself."""


class _WordsFormatter(Formatter):
    def format(self, record: LogRecord) -> str:
        _, task_id, attrs = vars(record)["facts"]
        at, level = datetime.fromtimestamp(record.created, timezone.utc), record.levelname.lower()
        words = " ".join(f"{key}={value}" for key, value in attrs.items())
        line = f"{at:%H:%M:%S} {level:7} {record.msg} {task_id or ''} {words}".rstrip()
        return line.replace("\n", "\\n")


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
        self._node_id = node_id
        out = _Stream(sys.stderr if stream is None else stream)
        words = out.stream.isatty() if as_json is None else not as_json
        out.setFormatter(_WordsFormatter() if words else JsonFormatter())
        if file is not None:
            file.setFormatter(_WordsFormatter() if as_json is False else JsonFormatter())
            file.failed = self._file_failed
        # A thread of its own writes: a pipe without a reader must not hold the guard.
        self._queue = QueuedHandler([out] if file is None else [out, file], self._lines_lost)
        self._logger = Logger("rae_node", level.upper())
        self._logger.addHandler(self._queue)
        self.flush = self._queue.flush

    def info(self, event: str, *, task_id: str | None = None, **attrs: Any) -> None:
        """What happens in a good day."""
        self._logger.info(event, extra=facts(self._node_id, task_id, **attrs))

    def warning(self, event: str, *, task_id: str | None = None, **attrs: Any) -> None:
        """What the node gets over by itself."""
        self._logger.warning(event, extra=facts(self._node_id, task_id, **attrs))

    def error(self, event: str, *, task_id: str | None = None, **attrs: Any) -> None:
        """What somebody should look at."""
        self._logger.error(event, extra=facts(self._node_id, task_id, **attrs))

    def _lines_lost(self, count: int) -> None:
        self.warning("log_lines_lost", count=count)

    def _file_failed(self, error: str) -> None:
        fix = "free space or fix logging.path; the lines meanwhile are on stderr only"
        self.warning("log_file_failed", error=error, fix=fix)
