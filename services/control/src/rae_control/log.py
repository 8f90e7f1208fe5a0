"""Control's own log: JSON lines on stderr."""

from __future__ import annotations

import logging
import os
from typing import Any, NoReturn

from rae_protocol.log import QueuedHandler, facts

# For gunicorn, which sets logging up: its lines and ours get one shape and one place.
LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {"json": {"()": "rae_protocol.log.JsonFormatter"}},
    "root": {"level": "INFO", "handlers": ["error_console"]},
    "loggers": {"gunicorn.error": {"level": "WARNING", "propagate": True}},
    "handlers": {
        "error_console": {"class": "logging.StreamHandler", "formatter": "json"},
    },
}


def write_in_a_thread() -> None:
    """A stderr that takes no more lines holds nothing up. Before gevent has patched threads."""
    root = logging.getLogger()
    root.handlers = [QueuedHandler(root.handlers, _lost)]


def end_process(code: int) -> NoReturn:
    """End at once; what was logged is written first."""
    logging.shutdown()
    os._exit(code)


def _lost(count: int) -> None:
    logging.getLogger(__name__).warning("log_lines_lost", extra=facts(count=count))
