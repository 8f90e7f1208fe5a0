"""The port of the model runner: a program of another user gets no prompt and is not believed."""

from __future__ import annotations

import json
import os
import socket
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from io import StringIO
from typing import Any

import pytest

from rae_node.runners.llm import port_problem, present_models, runner_uids
from rae_node.runners.llm_child import ask, listeners, stranger
from rae_node.runners.ollama_service import ModelRunner
from rae_node.telemetry.log import EventLog
from rae_protocol.clock import SystemClock

OURS, OTHERS = {os.getuid()}, {os.getuid() + 1}
BODY = {"model": "tiny", "prompt": "a secret", "stream": True}


class Squatter(BaseHTTPRequestHandler):
    """Answers as Ollama would, and notes what it was asked."""

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self.server.asked.append(self.path)  # type: ignore[attr-defined]
        self._say({"models": [{"name": "tiny:latest"}]})

    def do_POST(self) -> None:
        size = int(self.headers["Content-Length"])
        self.server.asked.append(self.rfile.read(size))  # type: ignore[attr-defined]
        self._say({"response": "hello", "done": True})

    def _say(self, value: dict[str, Any]) -> None:
        self.send_response(200)
        self.end_headers()
        self.wfile.write(json.dumps(value).encode())


@pytest.fixture
def squatter() -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), Squatter)
    server.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def url_of(server: HTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


def test_a_strangers_program_gets_no_prompt(squatter: HTTPServer) -> None:
    error = ask(url_of(squatter), BODY, OTHERS)["error"]
    assert error["code"] == "HANDBACK"
    assert (
        f"port {squatter.server_port} is held by a program of uid {os.getuid()}" in error["message"]
    )
    assert squatter.asked == []  # type: ignore[attr-defined]
    assert ask(url_of(squatter), BODY, OURS)["value"]["response"] == "hello"


def test_a_strangers_models_are_not_believed_and_the_log_says_so(squatter: HTTPServer) -> None:
    stream = StringIO()
    log = EventLog("n1", stream)
    runner = ModelRunner(log, SystemClock(), url_of(squatter), OTHERS)
    assert runner.models() is None
    log.flush()
    (line,) = [json.loads(one) for one in stream.getvalue().splitlines()]
    assert line["event"] == "model_port_taken"
    assert "ollama_user" in line["attrs"]["error"]
    assert squatter.asked == []  # type: ignore[attr-defined]
    assert present_models(url_of(squatter), 2.0, OURS) == ["tiny:latest"]


def test_a_port_that_is_free_is_no_stranger(free_port: int) -> None:
    assert port_problem(f"http://127.0.0.1:{free_port}", OTHERS) == ""


@pytest.mark.parametrize("host", ["127.0.0.1", "0.0.0.0", "::1", "::"])
def test_a_listener_is_found_at_each_address_that_loopback_reaches(host: str) -> None:
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as door:
        held = listeners(door.getsockname()[1])
    assert set(held.values()) == OURS
    assert stranger(1, held, OTHERS) != ""
    assert stranger(1, held, OURS) == ""


def test_the_model_runner_is_its_users_roots_or_the_agents_own() -> None:
    assert runner_uids("no-such-user", 1234) == {0, 1234}
    assert runner_uids("daemon", 1234) == {0, 1, 1234}
    assert os.getuid() in runner_uids("no-such-user")
