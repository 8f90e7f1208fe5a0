"""C8: control's log is JSON lines about events, and has no secret in it."""

from __future__ import annotations

import json
import logging
import os
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path

import pytest
import requests

from rae_control.config import ControlConfig
from rae_control.mesh.mesh import Mesh
from rae_protocol.log import JsonFormatter, facts
from tests.integration.control.harness import ECHO, Api, ManualClock


class Lines(logging.Handler):
    def __init__(self) -> None:
        super().__init__()
        self.setFormatter(JsonFormatter())
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(self.format(record))


@pytest.fixture
def lines() -> Iterator[list[str]]:
    handler, root = Lines(), logging.getLogger()
    level = root.level
    root.addHandler(handler)
    root.setLevel(logging.INFO)
    yield handler.lines
    root.removeHandler(handler)
    root.setLevel(level)


def test_log_lines_name_event_node_and_task(
    lines: list[str], api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    """Contract: C8."""
    api.join("n1")
    api.submit({**ECHO, "task_id": "t1"})
    api.take("n1")
    for _ in range(3):
        api.submit({**ECHO, "priority": 9})
        ref = api.take("n1")
        api.node("n1", "POST", "/tasks/yield", {**ref, "reason": "infrastructure"})
        clock.advance(20)
        mesh.reaper.tick()
    for _ in range(130):
        clock.advance(1)
        mesh.reaper.tick()
    refused = api.client.get("/tasks", headers={"Authorization": "Bearer guess-me"})
    assert refused.status_code == 401
    found = [json.loads(line) for line in lines]
    assert all(
        list(entry) == ["ts", "level", "node_id", "task_id", "event", "attrs"] for entry in found
    )
    told = {(entry["event"], entry["node_id"], entry["task_id"]) for entry in found}
    assert {
        ("node_registered", "n1", None), ("lease_expired", "n1", "t1"),
        ("node_cordoned", "n1", None), ("node_offline", "n1", None),
        ("request_refused", None, None),
    } <= told  # fmt: skip
    text = "".join(lines)
    assert not any(
        word in text for word in ("guess-me", "token-of", api.secrets["n1"], api.tokens["n1"])
    )


def test_a_refusal_is_logged_a_bounded_number_of_times(lines: list[str], api: Api) -> None:
    for _ in range(200):
        api.client.get("/tasks")
    assert sum("request_refused" in line for line in lines) == 50


def test_an_attribute_that_speaks_of_a_secret_is_hidden(lines: list[str]) -> None:
    log = logging.getLogger("rae_control.test")
    log.warning("x", extra=facts("n", "t", node_token="abc", Authorization="abc", fine="def"))
    log.error("what a library says: %s", "boom", exc_info=ValueError("why"))
    ours, theirs = (json.loads(line) for line in lines)
    assert ours["attrs"] == {
        "node_token": "(hidden)", "Authorization": "(hidden)", "fine": "def",
    }  # fmt: skip
    assert (theirs["event"], theirs["attrs"]["text"]) == ("message", "what a library says: boom")
    assert "ValueError: why" in theirs["attrs"]["exception"]


def test_a_stderr_that_takes_no_more_lines_holds_nothing_up(tmp_path: Path) -> None:
    reading, writing = os.pipe()
    os.set_blocking(writing, False)
    filler = 0
    with suppress(BlockingIOError):
        while True:
            filler += os.write(writing, b"x" * 1000)
    os.set_blocking(writing, True)
    (tmp_path / "run").mkdir()
    listener = socket.create_server(("127.0.0.1", 0))
    settings = {
        "data": str(tmp_path), "fds": [listener.fileno()], "redis_url": "unix:///nowhere",
        "config": ControlConfig().model_dump(),
    }  # fmt: skip
    with subprocess.Popen(
        [sys.executable, "-m", "rae_control.server.gunicorn_app", json.dumps(settings)],
        stderr=writing, pass_fds=[listener.fileno()],
    ) as server:  # fmt: skip
        os.close(writing)
        url = f"http://127.0.0.1:{listener.getsockname()[1]}/healthz"
        try:
            assert requests.get(url, timeout=20).status_code == 200
        finally:
            listener.close()
            server.terminate()
            with os.fdopen(reading, "rb") as pipe:
                text = pipe.read()
    assert server.returncode == 0
    events = [json.loads(line)["event"] for line in text[filler:].splitlines()]
    assert events[0] == "control_started"
    assert events[-1] == "control_stopped"
