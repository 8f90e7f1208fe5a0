"""One line of a log as C8 wants it, without what must not be in one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from datetime import datetime, timezone
from typing import Any

_SECRET_WORDS = ("secret", "token", "signature", "authorization", "password", "credential")


def log_line(
    level: str, event: str, unix: float, attrs: Mapping[str, Any], *,
    node_id: str | None = None, task_id: str | None = None,
) -> str:  # fmt: skip
    """JSON; attributes whose name speaks of a secret are hidden."""
    shown = {
        key: "(hidden)" if any(word in key.lower() for word in _SECRET_WORDS) else value
        for key, value in attrs.items()
    }
    at = datetime.fromtimestamp(unix, tz=timezone.utc).isoformat(timespec="milliseconds")
    entry = {"ts": at, "level": level, "node_id": node_id, "task_id": task_id, "event": event,
             "attrs": shown}  # fmt: skip
    return json.dumps(entry, default=str)
