"""Control's own log: a stable event name and its facts, one JSON object a line, to stderr."""

from __future__ import annotations

import logging
from typing import Any

from rae_protocol.logline import log_line

# For gunicorn, which sets logging up: its lines and ours get one shape and one place.
LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"generic": {"()": "rae_control.log.JsonFormatter"}},
    "root": {"level": "INFO", "handlers": ["error_console"]},
    "loggers": {
        "gunicorn.error": {
            "level": "WARNING",
            "handlers": ["error_console"],
            "propagate": False,
            "qualname": "gunicorn.error",
        }
    },
}


def facts(node_id: str | None = None, task_id: str | None = None, **attrs: Any) -> dict[str, Any]:
    """The `extra` of a log call: `log.warning("lease_expired", extra=facts(task_id=…))`."""
    return {"facts": (node_id, task_id, attrs)}


class JsonFormatter(logging.Formatter):
    """Our events as they are; what libraries say as the event `message`."""

    def __init__(self, *_: Any, **__: Any) -> None:
        super().__init__()

    def format(self, record: logging.LogRecord) -> str:
        """One line."""
        ours: tuple[str | None, str | None, dict[str, Any]] | None
        ours = getattr(record, "facts", None)
        event, (node_id, task_id, attrs) = record.getMessage(), ours or (None, None, {})
        if ours is None:
            event, attrs = "message", {"logger": record.name, "text": event}
        if record.exc_info:
            attrs = {**attrs, "exception": self.formatException(record.exc_info)}
        level = record.levelname.lower()
        return log_line(level, event, record.created, attrs, node_id=node_id, task_id=task_id)
