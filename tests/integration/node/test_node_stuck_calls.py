"""Whatever a task waits for before its program runs, a stop ends that within a second."""

from __future__ import annotations

import contextlib
import os
import select
import socket
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest

from rae_node.config.layout import Layout, socket_path
from rae_node.owner.socket import ask
from rae_node.runners.llm import present_models
from tests.integration.node.harness import FAST, FakeControl, MakeRig
from tests.unit.node.harness import UNREACHABLE
from tests.until import until

AT_ONCE_S = 1.0
OURS = frozenset({os.getuid()})
HEADERS = b"HTTP/1.1 200 OK\r\n"
SLOW = replace(FAST, input_slow_sec=0.6)


class StuckServer:
    """Sends `first`, then `drip` again and again, and never ends; without `accepts` its backlog is
    full, so no connection is ever made.
    """

    def __init__(self, first: bytes, drip: bytes, *, accepts: bool) -> None:
        self.connected, self.gone = threading.Event(), threading.Event()
        self._first, self._drip = first, drip
        self._over = threading.Event()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=0 if not accepts else 8)
        self.port = self._listener.getsockname()[1]
        self._fill = [socket.socket() for _ in range(0 if accepts else 3)]
        for one in self._fill:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", self.port))
        self._thread = threading.Thread(target=self._serve if accepts else self._watch)
        self._thread.start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            line, _ = self._listener.accept()
            with line:
                if self._first:  # after the request
                    line.recv(65536)
                line.sendall(self._first)
                self.connected.set()
                while not self._over.is_set():
                    if select.select([line], [], [], 0.02)[0] and not line.recv(65536):
                        break
                    line.sendall(self._drip)
        self.gone.set()

    def _watch(self) -> None:
        """`connected`: a SYN more than our own was sent, and not answered (state 02)."""
        wanted = f"0100007F:{self.port:04X} 02"
        while not self._over.wait(0.01):
            if Path("/proc/net/tcp").read_text("ascii").count(wanted) > len(self._waiting()):
                self.connected.set()
                return

    def _waiting(self) -> list[socket.socket]:
        return [one for one in self._fill if not select.select([], [one], [], 0)[1]]

    def close(self) -> None:
        self._over.set()
        with contextlib.suppress(OSError):
            self._listener.shutdown(socket.SHUT_RDWR)
        self._thread.join()
        for one in (self._listener, *self._fill):
            one.close()


STUCK: dict[str, tuple[str, bytes, bytes, bool]] = {
    "a TCP connect that is never answered": ("http", b"", b"", False),
    "a TLS handshake that is never answered": ("https", b"", b"", True),
    "a TLS handshake that trickles": ("https", b"\x16\x03\x03\x3f\xff", b"\x02", True),
    "an answer that never begins": ("http", b"", b"", True),
    "a header that trickles": ("http", HEADERS + b"X-Slow: ", b"x", True),
    "a body that trickles": ("http", HEADERS + b"\r\n", b"x", True),
    "a body that stops": ("http", HEADERS + b"Content-Length: 9\r\n\r\nab", b"", True),
    "a chunk's length that trickles": (
        "http", HEADERS + b"Transfer-Encoding: chunked\r\n\r\n9;a=", b"x", True,
    ),
    "the body of a redirect": (
        "http", b"HTTP/1.1 302 Found\r\nLocation: http://127.0.0.1:9/\r\n\r\n", b"x", True,
    ),
}  # fmt: skip


@pytest.fixture
def stuck() -> Iterator[Callable[[str], tuple[StuckServer, dict[str, Any]]]]:
    made: list[StuckServer] = []

    def make(what: str) -> tuple[StuckServer, dict[str, Any]]:
        scheme, first, drip, accepts = STUCK[what]
        server = StuckServer(first, drip, accepts=accepts)
        made.append(server)
        return server, {"inputs": {"f": {"url": f"{scheme}://127.0.0.1:{server.port}/f"}}}

    yield make
    for server in made:
        server.close()


Make = Callable[[str], tuple[StuckServer, dict[str, Any]]]


@pytest.mark.parametrize("what", [one for one in STUCK if "redirect" not in one])
def test_an_owner_who_returns_ends_a_download_in_every_state_within_a_second(
    make_rig: MakeRig, layout: Layout, stuck: Make, what: str
) -> None:
    server, task = stuck(what)
    rig = make_rig(input_url_hosts=["127.0.0.1"])
    rig.control.give("cli", **task)
    assert server.connected.wait(10)
    began = time.monotonic()
    ask(socket_path(layout.root), {"verb": "pause"})
    assert until(lambda: rig.control.of("yield"), "the hand-back")[0][1] == "paused"
    until(lambda: not list(layout.workdir.iterdir()), "the workspace is wiped")
    if "TCP" not in what:
        assert server.gone.wait(5)
    assert time.monotonic() - began < AT_ONCE_S


@pytest.mark.parametrize("how", ["cancelled", "deadline", "shutdown", "stale"])
def test_every_stop_ends_a_download_that_is_stuck(make_rig: MakeRig, stuck: Make, how: str) -> None:
    server, task = stuck("an answer that never begins")
    rig = make_rig(input_url_hosts=["127.0.0.1"])
    rig.control.margin_s = 0.0
    if how == "deadline":
        rig.control.fail["heartbeat"] = UNREACHABLE
    leased = rig.control.give("cli", **task, lease_ttl_s=2.0 if how == "deadline" else 60.0)
    assert server.connected.wait(10)
    began = time.monotonic()
    if how == "cancelled":
        rig.control.order(command="cancel", task_id=leased.task_id, lease_id=leased.lease_id)
    elif how == "shutdown":
        rig.agent.shut_down()
    elif how == "stale":
        rig.agent.disowned("control was restored")
    if how != "stale":
        assert until(lambda: rig.control.of("yield"), "the hand-back")[0][1] == how
    until(lambda: not rig.agent.runs(), "a free slot")
    assert server.gone.wait(5)
    assert time.monotonic() - began < AT_ONCE_S + (2.0 if how == "deadline" else 0.0)


@pytest.mark.parametrize("what", [one for one in STUCK if "redirect" not in one])
def test_a_download_below_the_least_rate_is_the_tasks_failure(
    make_rig: MakeRig, stuck: Make, what: str
) -> None:
    server, task = stuck(what)
    rig = make_rig(input_url_hosts=["127.0.0.1"], settings=SLOW)
    result, _ = rig.run("cli", **task)
    assert result.error is not None
    assert result.error.code == "E_INPUT"
    assert "comes too slowly" in result.error.message
    assert "1024 a second" in result.error.message
    assert "TCP" in what or server.gone.wait(5)


def test_the_body_of_a_redirect_is_not_read(make_rig: MakeRig, stuck: Make) -> None:
    _, task = stuck("the body of a redirect")
    result, _ = make_rig(input_url_hosts=["127.0.0.1"]).run("cli", **task)
    assert result.error is not None
    assert "answered HTTP 302" in result.error.message


class Late(BaseHTTPRequestHandler):
    """Answers each request after a while."""

    served: ClassVar[list[str]] = []
    after_s = 1.2

    def do_GET(self) -> None:
        time.sleep(self.after_s)
        self.send_response(200)
        self.send_header("Content-Length", "1")
        self.end_headers()
        self.wfile.write(b"x")
        self.served.append(self.path)

    def log_message(self, *_: object) -> None:
        pass


def test_all_downloads_of_a_task_together_have_its_time_limit(make_rig: MakeRig) -> None:
    with ThreadingHTTPServer(("127.0.0.1", 0), Late) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}"
        inputs = {name: {"url": f"{url}/{name}"} for name in ("a", "b", "c")}
        # Each alone is fast enough; the third is too late.
        limit_s = 2.5 * Late.after_s
        rig = make_rig(input_url_hosts=["127.0.0.1"])
        result, _ = rig.run("cli", inputs=inputs, timeout_s=limit_s)
        assert result.error is not None and result.error.code == "E_TIMEOUT"
        assert Late.served[:1] == ["/a"]
        server.shutdown()


def test_a_download_has_the_time_limit_of_its_task(make_rig: MakeRig, stuck: Make) -> None:
    first, task = stuck("a body that trickles")
    rig = make_rig(input_url_hosts=["127.0.0.1"])
    result, _ = rig.run("cli", **task, timeout_s=1.0)
    assert result.error is not None
    assert result.error.code == "E_TIMEOUT"
    assert "longer than 1 s; raise timeout_s of the task" in result.error.message
    assert first.gone.wait(5)


@pytest.mark.parametrize("verb", ["ack", "fetch", "log", "progress"])
def test_an_owner_who_returns_does_not_wait_for_a_call_to_control(
    make_rig: MakeRig, layout: Layout, tmp_path: Path, verb: str
) -> None:
    control, folder = HangingControl(verb), tmp_path / "trusted"
    folder.mkdir()
    told = "print('told', flush=True); ctx.progress(1, 'told'); time.sleep(60)"
    (folder / "t.py").write_text(f"import time\ndef run(ctx): {told}")
    rig = make_rig(control, tasks=[folder])
    try:
        inputs = {"f": {"size": 1}} if verb == "fetch" else {}
        rig.control.give("python", params={"task": "t"}, inputs=inputs)
        assert control.hangs.wait(10)
        began = time.monotonic()
        ask(socket_path(layout.root), {"verb": "pause"})
        assert until(lambda: rig.control.of("yield"), "the hand-back")[0][1] == "paused"
        assert time.monotonic() - began < AT_ONCE_S
    finally:
        control.free.set()


def test_a_result_that_control_does_not_take_holds_up_neither_the_owner_nor_the_end(
    make_rig: MakeRig, layout: Layout
) -> None:
    control = HangingControl("result")
    rig = make_rig(control)
    try:
        leased = rig.control.give("cli")
        assert control.hangs.wait(10)
        began = time.monotonic()
        ask(socket_path(layout.root), {"verb": "pause"})
        assert time.monotonic() - began < AT_ONCE_S
        rig.agent.shut_down()
        assert time.monotonic() - began < AT_ONCE_S + FAST.shutdown_sec + AT_ONCE_S
        assert [file.name for file in layout.spool.iterdir()] == [leased.lease_id]
    finally:
        control.free.set()


@pytest.mark.parametrize("what", [one for one in STUCK if one.startswith(("a ", "an "))])
def test_registering_waits_no_longer_than_its_limit_for_the_models(stuck: Make, what: str) -> None:
    server, _ = stuck(what)
    began = time.monotonic()
    assert present_models(f"http://127.0.0.1:{server.port}", 0.3, OURS) is None
    assert time.monotonic() - began < AT_ONCE_S


def test_the_models_that_ollama_has_are_read() -> None:
    said = b'{"models": [{"name": "b:latest"}, {"name": "a:1b"}]}'
    head = HEADERS + f"Content-Length: {len(said)}\r\n\r\n".encode()
    server = StuckServer(head + said, b"", accepts=True)
    try:
        assert present_models(f"http://127.0.0.1:{server.port}", 5.0, OURS) == ["a:1b", "b:latest"]
    finally:
        server.close()


class HangingControl(FakeControl):
    """Does not answer calls of a kind until the test lets it."""

    def __init__(self, verb: str) -> None:
        super().__init__()
        self.hangs, self.free, self._verb = threading.Event(), threading.Event(), verb

    def _call(self, verb: str, detail: Any = None) -> None:
        super()._call(verb, detail)
        if verb == self._verb:
            self.hangs.set()
            self.free.wait(60)
