"""Whoever reads much, slowly or not at all delays only himself."""

from __future__ import annotations

import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from urllib.parse import urlsplit

import pytest
import requests

from rae_control.backup import check_folder
from tools.devmesh import DevMesh
from tools.ledger_rows import Rows, fill

MANY = 60_000
# What one read, or a piece of a long one, may take of a busy machine.
MOST_S = 0.5
TOKENS = ("ann", "bob")


@pytest.fixture(scope="module")
def mesh(tmp_path_factory: pytest.TempPathFactory) -> Iterator[DevMesh]:
    """A control with very many tasks of ann's, and some of bob's."""
    with DevMesh(()) as mesh:
        tokens = {name: str(mesh.admin.add_token(name, "submit").token) for name in TOKENS}
        (mesh.data / "tokens.json").write_text(json.dumps(tokens))
        mesh.control.stop()
        fill(mesh.data, Rows("a", MANY, "ann"), Rows("b", 10, "bob"))
        assert check_folder(mesh.data, deep=False) == []
        mesh.start_control()
        yield mesh


def token(mesh: DevMesh, who: str) -> str:
    return str(json.loads((mesh.data / "tokens.json").read_text())[who])


def get(mesh: DevMesh, who: str, path: str) -> requests.Response:
    headers = {"Authorization": f"Bearer {token(mesh, who)}"}
    return requests.get(mesh.url + path, headers=headers, timeout=120)


def asked(mesh: DevMesh, who: str, path: str) -> socket.socket:
    """A connection that has asked, and whose answer is not read yet."""
    address = urlsplit(mesh.url)
    caller = socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=120)
    head = f"GET {path} HTTP/1.1\r\nHost: c\r\nConnection: close\r\n"
    caller.sendall(f"{head}Authorization: Bearer {token(mesh, who)}\r\n\r\n".encode())
    return caller


def longest(call: Callable[[], object], over: Callable[[], bool]) -> float:
    """Seconds of the slowest of these calls, one after the other, until it is over."""
    slowest, last = 0.0, False
    while not last:
        last = over()
        began = time.monotonic()
        call()
        slowest = max(slowest, time.monotonic() - began)
    return slowest


def drain(callers: list[socket.socket]) -> threading.Thread:
    """Read all answers, in a thread."""

    def run() -> None:
        for caller in callers:
            assert caller.recv(12) == b"HTTP/1.1 200"
            while caller.recv(65536):
                pass

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def bob_reads(mesh: DevMesh) -> None:
    assert len(get(mesh, "bob", "/tasks?limit=5").json()["tasks"]) == 5


def test_two_hundred_long_lists_delay_nobody_else(mesh: DevMesh) -> None:
    with ExitStack() as stack:
        callers = [stack.enter_context(asked(mesh, "ann", "/tasks?limit=500")) for _ in range(200)]
        reading = drain(callers)
        assert longest(lambda: bob_reads(mesh), lambda: not reading.is_alive()) < MOST_S
        reading.join()
