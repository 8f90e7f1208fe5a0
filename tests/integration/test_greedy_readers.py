"""Whoever reads much, slowly or not at all delays only himself."""

from __future__ import annotations

import contextlib
import json
import socket
import statistics
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from urllib.parse import urlsplit

import pytest
import requests

from rae_control.maintenance.backup import check_folder
from rae_control.server.gunicorn_worker import SLOW_S
from rae_control.wire import KNOWN_EACH
from tests.until import until
from tools.devmesh import DevMesh
from tools.ledger_rows import Rows, fill

MANY = 60_000
LARGE = 7_800_000
# A call takes some 20 ms beside these on an idle machine; tests have not got one for themselves.
MOST_S = 1.0
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


def asked(mesh: DevMesh, who: str, path: str, body: bytes | None = None) -> socket.socket:
    """A connection that has asked, and whose answer is not read yet."""
    address = urlsplit(mesh.url)
    caller = socket.socket()
    caller.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)  # what is not read stays there
    caller.settimeout(120)
    caller.connect((str(address.hostname), int(address.port or 0)))
    head = f"{'GET' if body is None else 'POST'} {path} HTTP/1.1\r\nHost: c\r\n"
    head += f"Connection: close\r\nAuthorization: Bearer {token(mesh, who)}\r\n"
    if body is not None:
        head += f"Content-Type: application/json\r\nContent-Length: {len(body)}\r\n"
    caller.sendall(f"{head}\r\n".encode() + (body or b""))
    return caller


def every(call: Callable[[], object], over: Callable[[], bool]) -> list[float]:
    """Seconds of each of these calls, one after the other, until it is over."""
    took, last = list[float](), False
    while not last:
        last = over()
        began = time.monotonic()
        call()
        took.append(time.monotonic() - began)
    return took


def longest(call: Callable[[], object], over: Callable[[], bool]) -> float:
    """Seconds of the slowest of them."""
    return max(every(call, over))


def drain(callers: list[socket.socket]) -> threading.Thread:
    """Read all answers, in a thread."""

    def run() -> None:
        for caller in callers:
            assert caller.recv(12) in {b"HTTP/1.1 200", b"HTTP/1.1 201"}
            while caller.recv(65536):
                pass

    thread = threading.Thread(target=run)
    thread.start()
    return thread


def bob_reads(mesh: DevMesh) -> None:
    assert len(get(mesh, "bob", "/tasks?limit=5").json()["tasks"]) == 5


def test_two_hundred_long_lists_delay_no_other_submitter(mesh: DevMesh) -> None:
    with ExitStack() as stack:
        callers = [stack.enter_context(asked(mesh, "ann", "/tasks?limit=500")) for _ in range(200)]
        reading = drain(callers)
        assert longest(lambda: bob_reads(mesh), lambda: not reading.is_alive()) < MOST_S
        reading.join()


def test_a_thousand_connections_that_go_on_asking_delay_nobody_else(mesh: DevMesh) -> None:
    known = f"Authorization: Bearer {token(mesh, 'ann')}"
    head = f"GET /openapi.json HTTP/1.1\r\nHost: c\r\n{known}\r\n"
    address = urlsplit(mesh.url)
    place = str(address.hostname), int(address.port or 0)
    with ExitStack() as stack:
        callers = []
        for number in range(1000):
            # Of few at each address: none of them has shown its token yet.
            source = f"127.0.9.{1 + number // 200}", 0
            caller = stack.enter_context(socket.create_connection(place, 120, source))
            caller.sendall(f"{head}\r\n{head}\r\n{head}Connection: close\r\n\r\n".encode())
            callers.append(caller)
        reading = drain(callers)
        took = every(lambda: bob_reads(mesh), lambda: not reading.is_alive())
        reading.join()
    # Otherwise each call of bob's waits for a request of each connection, which takes seconds.
    assert statistics.median(took) < MOST_S


@pytest.fixture
def large(mesh: DevMesh) -> str:
    """The path of a task of ann's whose detail has nearly 8 MiB."""
    inputs = {name: {"inline": "x" * (LARGE // 2)} for name in ("f", "g")}
    spec = {
        "task_id": "large", "kind": "cli", "params": {"command": "true"},
        "inputs": inputs, "not_before": "2190-01-01T00:00:00Z",
    }  # fmt: skip
    headers = {"Authorization": f"Bearer {token(mesh, 'ann')}"}
    answer = requests.post(f"{mesh.url}/tasks", json=spec, headers=headers, timeout=60)
    assert answer.status_code == 201, answer.text
    return "/tasks/large"


def unnamed(mesh: DevMesh) -> int:
    """Bytes of control's files that have no name."""
    size = 0
    for link in Path(f"/proc/{mesh.pid('worker')}/fd").iterdir():
        with contextlib.suppress(FileNotFoundError):
            if str(link.readlink()).endswith(" (deleted)"):
                size += link.stat().st_size
    return size


def test_two_hundred_large_details_that_are_not_read_are_bounded_and_end(
    mesh: DevMesh, large: str
) -> None:
    with ExitStack() as stack:
        callers = [stack.enter_context(asked(mesh, "ann", large)) for _ in range(200)]
        heads: list[bytes] = []

        def begin() -> None:
            heads.extend(caller.recv(12) for caller in callers)

        beginning = threading.Thread(target=begin)
        beginning.start()
        assert longest(lambda: bob_reads(mesh), lambda: not beginning.is_alive()) < MOST_S
        beginning.join()
        assert heads.count(b"HTTP/1.1 200") == KNOWN_EACH // LARGE
        assert heads.count(b"HTTP/1.1 429") == 200 - KNOWN_EACH // LARGE
        assert unnamed(mesh) <= KNOWN_EACH
        refused = get(mesh, "ann", large)
        assert (refused.status_code, refused.headers["Retry-After"]) == (429, "1")
        bob_reads(mesh)
        until(lambda: get(mesh, "ann", large).status_code == 200, "they ended", SLOW_S + 30)
        until(lambda: unnamed(mesh) == 0, "nothing is held", 30)


def bob_submits(mesh: DevMesh) -> None:
    headers = {"Authorization": f"Bearer {token(mesh, 'bob')}"}
    answer = requests.post(f"{mesh.url}/tasks", json=LATER, headers=headers, timeout=120)
    assert answer.status_code == 201, answer.text


LATER = {"kind": "cli", "params": {"command": "true"}, "not_before": "2190-01-01T00:00:00Z"}
# Long to parse, and with few rows; and short, with as many rows as a small one has.
FLOODS = {
    "large": (100, {**LATER, "params": {"command": "true", "x": [1] * 35_000}}),
    "small": (240, {"tasks": [LATER] * 20}),
}


@pytest.mark.parametrize("kind", FLOODS)
def test_hundreds_of_submits_at_once_delay_no_other_submitter(mesh: DevMesh, kind: str) -> None:
    many, body = FLOODS[kind]
    text = json.dumps(body).encode()
    with ExitStack() as stack:
        callers = [stack.enter_context(asked(mesh, "ann", "/tasks", text)) for _ in range(many)]
        submitting = drain(callers)
        assert longest(lambda: bob_submits(mesh), lambda: not submitting.is_alive()) < MOST_S
        submitting.join()
