"""The logs of control and node: an event's name and its facts, a line each, without secrets."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import datetime, timezone
from logging.handlers import QueueHandler, QueueListener
from queue import Empty, SimpleQueue
from typing import Any

SECRET_WORDS = ("secret", "token", "signature", "authorization", "password", "credential")
QUEUED = 2000  # lines


def facts(node_id: str | None = None, task_id: str | None = None, **attrs: Any) -> dict[str, Any]:
    """The `extra` of a log call: `log.warning("lease_expired", extra=facts(task_id=…))`.

    Attributes whose name speaks of a secret are hidden.
    """
    shown = {
        key: "(hidden)" if any(word in key.lower() for word in SECRET_WORDS) else value
        for key, value in attrs.items()
    }
    return {"facts": (node_id, task_id, shown)}


class JsonFormatter(logging.Formatter):
    """C8's line. Our events as they are; what libraries say as the event `message`."""

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        ours: tuple[str | None, str | None, dict[str, Any]] | None
        ours = getattr(record, "facts", None)
        event, (node_id, task_id, attrs) = record.getMessage(), ours or (None, None, {})
        if ours is None:
            event, attrs = "message", {"logger": record.name, "text": event}
        if record.exc_info:
            attrs = {**attrs, "exception": self.formatException(record.exc_info)}
        at = datetime.fromtimestamp(record.created, tz=timezone.utc)
        ts, level = at.isoformat(timespec="milliseconds"), record.levelname.lower()
        entry = {"ts": ts, "level": level, "node_id": node_id, "task_id": task_id, "event": event}
        return json.dumps({**entry, "attrs": attrs}, default=str)


class QueuedHandler(QueueHandler):
    """A thread hands records to `handlers`, so that a reader who is slow holds up no caller.

    `lost` gets how many did not fit, once there is room again.
    """

    def __init__(self, handlers: Sequence[logging.Handler], lost: Callable[[int], None]) -> None:
        self._records: SimpleQueue[Any] = SimpleQueue()
        super().__init__(self._records)
        self._lost, self._report = 0, lost
        _Listener(self._records, *handlers, after=self._after).start()

    def prepare(self, record: logging.LogRecord) -> logging.LogRecord:
        """Each handler has a format of its own; only the text must not change any more."""
        record.msg, record.args = record.getMessage(), None
        return record

    def enqueue(self, record: logging.LogRecord) -> None:
        """Add it, or count it as lost."""
        if self._records.qsize() < QUEUED:
            self._records.put(record)
        else:
            self._lost += 1

    def flush(self, timeout_s: float = 1.0) -> None:
        """Wait until everything before is written, at most so long."""
        done: SimpleQueue[None] = SimpleQueue()
        self._records.put(done)
        with suppress(Empty):
            done.get(timeout=timeout_s)

    def _after(self) -> None:
        if self._lost and self._records.qsize() < QUEUED // 2:
            lost, self._lost = self._lost, 0
            self._report(lost)


class _Listener(QueueListener):
    def __init__(
        self, records: SimpleQueue[Any], *handlers: logging.Handler, after: Callable[[], None]
    ) -> None:
        super().__init__(records, *handlers)
        self._after = after

    def handle(self, record: Any) -> None:
        if isinstance(record, SimpleQueue):  # somebody waits for what was before
            record.put(None)
            return
        super().handle(record)
        self._after()
