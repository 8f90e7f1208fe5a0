"""A scripted server's parts, and control's answers."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field

from rae_protocol import models


@dataclass(frozen=True, slots=True)
class Answer:
    """One scripted answer; `cut` closes the connection after the headers, or before them."""

    status: int = 200
    body: bytes = b"{}"
    headers: dict[str, str] = field(default_factory=dict)
    cut: str | None = None


@dataclass(frozen=True, slots=True)
class Request:
    """What came."""

    method: str
    target: str
    headers: dict[str, str]
    body: bytes


@dataclass(slots=True)
class ScriptedServer:
    """Serves `answers` one by one (the last one for ever) and keeps every request.

    `adds` gives headers that only the request decides.
    """

    url: str = ""
    answers: list[Answer] = field(default_factory=lambda: [Answer()])
    requests: list[Request] = field(default_factory=list)
    adds: Callable[[Request, Answer], dict[str, str]] = lambda _request, _answer: {}

    def next_answer(self) -> Answer:
        """Take the next one."""
        return self.answers.pop(0) if len(self.answers) > 1 else self.answers[0]


NOW = 1_767_225_600.0
EMPTY_POLL = b'{"reasons": [], "commands": []}'
LEASE = models.LeaseRef(task_id="t1", attempt=1, lease_id="lease-0001")
REGISTERED = json.dumps(
    {
        "node_token": "session-token", "expires_in_s": 60.0, "heartbeat_interval_sec": 30.0,
        "heartbeat_timeout_sec": 120.0, "lease_margin_s": 10.0, "ack_timeout_s": 10.0,
        "incarnation": "i1",
    }
).encode()  # fmt: skip


def refuse(rc: str) -> bytes:
    return json.dumps({"rc": rc, "message": "words", "detail": {}}).encode()
