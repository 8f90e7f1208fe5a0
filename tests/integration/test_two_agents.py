"""One node_id on two machines, and inputs that take long: no attempt begins beside another one."""

from __future__ import annotations

import signal
import time
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from tests.harness import MakeMesh
from tests.integration.stamps import Stamps, started
from tests.servers import served
from tests.until import until
from tools.devmesh import DevMesh


def registrations(mesh: DevMesh) -> int:
    return sum(event.reason == "registered" for event in mesh.admin.events().events)


def test_a_copied_node_does_not_start_what_the_first_machine_still_runs(
    make_mesh: MakeMesh, tmp_path: Path
) -> None:
    stamps = Stamps(tmp_path)
    mesh = make_mesh("n1", node={"task_paths": [str(stamps.tasks)]})
    task_id = mesh.rae.submit([stamps.body(60, lease_ttl_s=20)])[0].task_id
    started(stamps, task_id)
    # Its agent is silent; the supervisor lets the task live until its deadline.
    mesh.nodes["n1"].signal(signal.SIGSTOP)
    copy = mesh.copy_node("n1", tmp_path / "copy")
    try:
        for end in (copy.kill, copy.stop, None):  # cut off, then with a goodbye
            before = registrations(mesh)
            copy.start()
            until(lambda n=before: registrations(mesh) > n, "the copy registered", 30)
            if end is not None:
                end()
        assert mesh.admin.node("n1").state == "online"
        assert not stamps.silent(task_id), "too late to show anything: attempt 1 is over"
        view = mesh.admin.task(task_id)
        assert (view.attempts, view.state.value, view.reason) == (1, "waiting", "machine_changed")
        started(stamps, task_id, 2)
        mesh.nodes["n1"].signal(signal.SIGCONT)
        log = mesh.nodes["n1"].log
        until(lambda: "task_ended" in log.read_text(), "the first agent saw the end", 30)
        stamps.alive_alone(task_id)
    finally:
        copy.stop()


class Slow(BaseHTTPRequestHandler):
    """Answers when the test says so."""

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self.send_response(200)
        self.send_header("Content-Length", "2")
        self.end_headers()
        self.wfile.write(b"h")
        self.server.free.wait(60)  # type: ignore[attr-defined]
        self.wfile.write(b"i")


@pytest.fixture
def slow() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Slow)
    with served(server):
        yield server


def test_an_input_and_a_program_that_both_take_almost_the_time_limit_cost_no_attempt(
    make_mesh: MakeMesh, tmp_path: Path, slow: ThreadingHTTPServer
) -> None:
    """Together longer than the time limit and two lease times: heartbeats keep the lease."""
    stamps = Stamps(tmp_path)
    node = {"task_paths": [str(stamps.tasks)], "input_url_hosts": ["127.0.0.1"]}
    mesh = make_mesh("n1", "n2", node=node)
    url = f"http://127.0.0.1:{slow.server_port}/f"
    limit_s, each_s, ttl_s = 14, 12, 4
    assert 2 * each_s > limit_s + 2 * ttl_s
    inputs = {"f": {"url": url}}
    body = stamps.body(each_s, inputs=inputs, timeout_s=limit_s, lease_ttl_s=ttl_s)
    task_id = mesh.rae.submit([body])[0].task_id
    until(lambda: mesh.rae.task(task_id).state.value == "running", "it was acked", 20)
    acked = time.monotonic()
    until(lambda: time.monotonic() > acked + each_s, "the input took long", 30)
    slow.free.set()  # type: ignore[attr-defined]
    view = mesh.rae.wait(task_id, 60)
    assert (view.state.value, view.attempts, view.interruptions) == ("succeeded", 1, 0)
    assert time.monotonic() - acked > 2 * each_s


def test_an_input_that_takes_longer_than_the_time_limit_fails_as_that(
    make_mesh: MakeMesh, tmp_path: Path, slow: ThreadingHTTPServer
) -> None:
    mesh = make_mesh("n1", node={"input_url_hosts": ["127.0.0.1"]})
    url = f"http://127.0.0.1:{slow.server_port}/f"
    body = {"kind": "cli", "params": {"command": "cat"}, "inputs": {"f": {"url": url}}}
    task_id = mesh.rae.submit([{**body, "timeout_s": 1, "max_attempts": 1}])[0].task_id
    view = mesh.rae.wait(task_id, 30)
    assert view.error is not None
    assert (view.state.value, view.error.code) == ("failed", "E_TIMEOUT")
    assert "raise timeout_s of the task" in view.error.message
