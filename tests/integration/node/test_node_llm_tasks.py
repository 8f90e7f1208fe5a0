"""llm tasks against a stand-in for Ollama."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from typing import Any

import pytest

from tests.integration.node.harness import MakeRig
from tests.servers import served
from tests.until import until


class Ollama(BaseHTTPRequestHandler):
    """As much of Ollama as the runner talks to."""

    def log_message(self, *_: Any) -> None: ...

    def _send(self, status: int, *lines: dict[str, Any]) -> None:
        self.send_response(status)
        self.end_headers()
        for line in lines:
            self.wfile.write(json.dumps(line).encode() + b"\n")

    def do_GET(self) -> None:
        self._send(200, {"models": [{"name": "tiny:latest"}]})

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        if body["model"] != "tiny":
            return self._send(404, {"error": "model not found"})
        if body["prompt"] == "hang":
            self.server.hung.set()  # type: ignore[attr-defined]
            self.server.free.wait(20)  # type: ignore[attr-defined]
            return None
        words = [{"response": word} for word in ("Hello", ", ", body.get("system", "you"))]
        count = {"response": "", "done": True, "eval_count": body["options"].get("num_predict", 3)}
        return self._send(200, *words, count)


@pytest.fixture
def ollama() -> Iterator[HTTPServer]:
    server = HTTPServer(("127.0.0.1", 0), Ollama)
    server.hung = threading.Event()  # type: ignore[attr-defined]
    with served(server):
        yield server


def url_of(server: HTTPServer) -> str:
    return f"http://127.0.0.1:{server.server_port}"


ROLES = {"greeter": "tiny", "lost": "gone"}


@pytest.mark.parametrize(
    ("params", "code", "words"),
    [
        ({"role": "unknown"}, "E_INVALID", "choose from greeter, lost"),
        ({"role": "lost"}, "E_INVALID", "here are: tiny:latest"),
        ({}, "E_INVALID", "either a role or a model"),
        ({"model": "big-cloud"}, "E_INVALID", "no local model"),
        ({"role": "greeter", "temperature": 1}, "E_INVALID", "temperature"),
    ],
)
def test_an_llm_task_that_cannot_be_says_why(
    make_rig: MakeRig, ollama: HTTPServer, params: dict[str, Any], code: str, words: str
) -> None:
    rig = make_rig(ollama_url=url_of(ollama), llm_models=ROLES)
    result, _ = rig.run("llm", params={"prompt": "hi", **params})
    assert result.error is not None and result.error.code == code and words in result.error.message


def test_an_llm_task_streams_an_answer(make_rig: MakeRig, ollama: HTTPServer) -> None:
    rig = make_rig(ollama_url=url_of(ollama), llm_models=ROLES)
    result, _ = rig.run(
        "llm", params={"prompt": "hi", "system": "RAE", "role": "greeter", "max_tokens": 7}
    )
    assert result.result == {"model": "tiny", "response": "Hello, RAE", "eval_count": 7}
    assert rig.control.of("register")[0].capabilities.llm == ["greeter"]


def test_an_llm_task_ends_at_its_time_limit(make_rig: MakeRig, ollama: HTTPServer) -> None:
    rig = make_rig(ollama_url=url_of(ollama), llm_models=ROLES)
    result, _ = rig.run("llm", params={"prompt": "hang", "role": "greeter"}, timeout_s=0.5)
    assert result.error is not None and result.error.code == "E_TIMEOUT"


def test_without_ollama_an_llm_task_goes_back(make_rig: MakeRig) -> None:
    rig = make_rig(ollama_url="http://127.0.0.1:9", llm_models=ROLES)
    rig.control.give("llm", params={"prompt": "hi", "role": "greeter"})
    found = until(lambda: rig.control.of("yield"), "the hand-back")[0]
    assert found[1] == "infrastructure" and "does not answer" in found[2]
