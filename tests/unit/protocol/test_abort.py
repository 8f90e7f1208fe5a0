"""Calls that another thread aborts, against real connections."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
import requests

from rae_protocol.abort import AbortableAdapter, Aborted, Aborter, within

AT_ONCE_S = 1.0


class Once(BaseHTTPRequestHandler):
    """Answers `/quick`; keeps anyone else waiting on the same connection, and notes its end."""

    protocol_version = "HTTP/1.1"

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        if self.path == "/quick":
            self.send_response(200)
            self.send_header("Content-Length", "0")
            self.end_headers()
            return
        self.server.asked.set()  # type: ignore[attr-defined]
        self.connection.settimeout(20)
        self.server.ended = self.connection.recv(1) == b""  # type: ignore[attr-defined]
        self.server.gone.set()  # type: ignore[attr-defined]
        self.close_connection = True


@pytest.fixture
def once() -> Iterator[Any]:
    server: Any = ThreadingHTTPServer(("127.0.0.1", 0), Once)
    server.asked, server.gone, server.ended = threading.Event(), threading.Event(), False
    server.url = f"http://127.0.0.1:{server.server_port}"
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


@pytest.fixture
def session() -> Iterator[requests.Session]:
    with requests.Session() as made:
        made.trust_env = False
        made.mount("http://", AbortableAdapter())
        yield made


def test_an_abort_ends_a_call_on_a_connection_that_an_earlier_one_made(
    once: Any, session: requests.Session
) -> None:
    calls = Aborter()
    assert calls.run(lambda: session.get(f"{once.url}/quick", timeout=20)).status_code == 200
    with ThreadPoolExecutor() as pool:
        stuck = pool.submit(calls.run, lambda: session.get(f"{once.url}/stuck", timeout=20))
        assert once.asked.wait(5)
        began = time.monotonic()
        calls.abort()
        with pytest.raises(Aborted):
            stuck.result()
    assert once.gone.wait(5)
    assert once.ended
    assert time.monotonic() - began < AT_ONCE_S


def test_a_call_that_cannot_be_woken_is_left_and_gets_no_connection_any_more(
    once: Any, session: requests.Session
) -> None:
    calls, looks_up, found, ended = Aborter(), *(threading.Event() for _ in range(3))
    came: list[object] = []

    def slow_name() -> None:
        looks_up.set()
        found.wait(20)  # as getaddrinfo does: nothing ends it from outside
        try:
            came.append(session.get(f"{once.url}/quick", timeout=20))
        except requests.ConnectionError as error:
            came.append(error)
        ended.set()

    with ThreadPoolExecutor() as pool:
        stuck = pool.submit(calls.run, slow_name)
        assert looks_up.wait(5)
        began = time.monotonic()
        calls.abort()
        with pytest.raises(Aborted):
            stuck.result()
        assert time.monotonic() - began < AT_ONCE_S
        found.set()
        assert ended.wait(5)
    assert isinstance(came[0], requests.ConnectionError)


def test_a_check_that_raises_ends_its_own_call_alone(once: Any, session: requests.Session) -> None:
    calls = Aborter()

    def check() -> float:
        if once.asked.is_set():
            raise ValueError("too slow")
        return 0.02

    with pytest.raises(ValueError, match="too slow"):
        calls.run(lambda: session.get(f"{once.url}/stuck", timeout=20), check)
    assert once.gone.wait(5)
    assert calls.run(lambda: 7, check=lambda: 1.0) == 7


def test_a_call_has_its_outcome_and_leaves_no_descriptor(
    once: Any, session: requests.Session
) -> None:
    calls = Aborter()
    with pytest.raises(ZeroDivisionError):
        calls.run(lambda: 1 / 0)
    calls.run(lambda: session.get(f"{once.url}/quick", timeout=20))
    before = len(list(Path("/proc/self/fd").iterdir()))
    for _ in range(20):
        calls.run(lambda: session.get(f"{once.url}/quick", timeout=20))
    assert len(list(Path("/proc/self/fd").iterdir())) == before


def test_nothing_takes_longer_than_its_total_limit() -> None:
    began = time.monotonic()
    with pytest.raises(TimeoutError, match=r"0\.1 s"):
        within(0.1, lambda: threading.Event().wait(20))
    assert time.monotonic() - began < AT_ONCE_S
