"""Who shows no token holds little of control, however he sends: over real sockets.

Strangers have an address of their own on loopback, so that what they use up is theirs.
"""

from __future__ import annotations

import contextlib
import json
import resource
import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import count
from pathlib import Path
from urllib.parse import urlsplit

import pytest

from rae_control.core import gate
from rae_control.server import gunicorn_worker
from rae_protocol import signing
from rae_protocol.errors import TABLE
from rae_protocol.models import Heartbeat, RegisterRequest
from rae_protocol.names import MAX_REGISTER_BYTES, MAX_RESULT_BYTES
from rae_protocol.node_client import NodeClient
from tests.harness import MakeMesh
from tests.until import until
from tools.devmesh import DevMesh

MIB = 1024**2
ADDRESSES = (f"127.0.7.{number}" for number in count(1))


SIGNED = f'RAE-Signature: keyid="ghost", ts="1", nonce="{"A" * 22}", sig="{"0" * 64}"'

NODES = (("n7", "hmac"), ("tiny", "bearer"))
REGISTRATION = b'{"node_id": "n7", "machine": "m", "ack": true}'
TINY = b'{"node_id": "tiny", "machine": "t"}'


@pytest.fixture
def address() -> str:
    """Of a stranger whom control does not know yet."""
    return next(ADDRESSES)


def connect(mesh: DevMesh, source: str) -> socket.socket:
    port = urlsplit(mesh.url).port
    return socket.create_connection(("127.0.0.1", int(port or 0)), 10, source_address=(source, 0))


def head(method: str, path: str, length: int, *lines: str) -> bytes:
    rest = "".join(f"{line}\r\n" for line in lines)
    return (
        f"{method} {path} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        f"Content-Length: {length}\r\n{rest}\r\n"
    ).encode()


def signature(secret: str = "wrong", node_id: str = "ghost", body: bytes = b"{}") -> str:
    made = signing.signed_fields(
        secret.encode(), node_id, "POST", "/nodes/register", time.time(), body
    )
    return f"Authorization: RAE-HMAC {made.header()}"


def answers(connection: socket.socket) -> tuple[int, dict[str, str], bytes]:
    """The first answer: status, headers, body; the rest until the connection ends."""
    data = b""
    with contextlib.suppress(ConnectionResetError):
        while piece := connection.recv(65536):
            data += piece
    top, _, body = data.partition(b"\r\n\r\n")
    first, *lines = top.decode().split("\r\n")
    headers = dict(line.lower().split(": ", 1) for line in lines)
    return int(first.split()[1]), headers, body


def temporary_bytes(pid: int) -> int:
    """What a process holds in files without a name."""
    total = 0
    for entry in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            if "(deleted)" in str(entry.readlink()):
                total += entry.stat().st_size
    return total


def files(pid: int) -> int:
    """How many descriptors a process has."""
    return sum(1 for _ in Path(f"/proc/{pid}/fd").iterdir())


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as closing:
        yield closing


@pytest.mark.parametrize(
    ("method", "path", "lines", "rc"),
    [
        ("POST", "/tasks/result", ("Authorization: Bearer wrong",), "register_again"),
        ("POST", "/tasks/result", (), "unauthorized"),
        ("PUT", "/blobs/" + "0" * 64, ("Authorization: Bearer wrong",), "unauthorized"),
        ("POST", "/tasks/result", ("Authorization: Bearer wrong", SIGNED), "register_again"),
        ("POST", "/tasks", ("Authorization: Bearer wrong",), "unauthorized"),
        ("POST", "/nodes/register", ("Authorization: Bearer wrong",), "not_enrolled"),
        ("POST", "/nodes/register", ("Authorization: RAE-HMAC x",), "bad_signature"),
    ],
)
def test_a_stranger_is_refused_by_his_headers_alone(
    control: DevMesh, address: str, method: str, path: str, lines: tuple[str, ...], rc: str
) -> None:
    with connect(control, address) as connection:
        connection.sendall(head(method, path, 10 * MIB, *lines) + b"{")
        status, headers, body = answers(connection)
        assert (status, json.loads(body)["rc"]) == (TABLE[rc][0], rc)
        assert headers["connection"] == "close"


def test_half_sent_bodies_of_strangers_hold_no_files(
    control: DevMesh, address: str, stack: ExitStack
) -> None:
    pid = control.pid("worker")
    before = temporary_bytes(pid)
    for _ in range(8):
        connection = stack.enter_context(connect(control, address))
        with contextlib.suppress(OSError):
            connection.sendall(head("POST", "/tasks/result", MAX_RESULT_BYTES))
            connection.sendall(b"\0" * (MAX_RESULT_BYTES - MIB))
        assert temporary_bytes(pid) - before < MIB


@pytest.mark.parametrize(
    ("path", "lines"),
    [
        ("/nodes/register", (signature(),)),
        ("/tasks/result", ("Authorization: Bearer wrong", SIGNED)),
    ],
)
def test_signed_bodies_of_one_stranger_together_have_a_limit(
    control: DevMesh, address: str, stack: ExitStack, path: str, lines: tuple[str, ...]
) -> None:
    def start(come: int = 1) -> socket.socket:
        connection = stack.enter_context(connect(control, address))
        connection.sendall(head("POST", path, MAX_REGISTER_BYTES, *lines) + b"{" * come)
        return connection

    for _ in range(4):
        start(MAX_REGISTER_BYTES - 1)
    status, headers, body = answers(start())
    assert (status, json.loads(body)["rc"]) == (429, "rate_limited")
    assert int(headers["retry-after"]) >= 1


def test_slow_bodies_and_slow_headers_end_in_time(
    control: DevMesh, address: str, stack: ExitStack
) -> None:
    token = control.credentials()["submit_token"]
    registration = head("POST", "/nodes/register", 1000, signature())
    submit = head("POST", "/tasks", 1000, f"Authorization: Bearer {token}")
    # A byte now and then, which would keep any limit between two reads from ever ending it.
    drips = {}
    for start, drip in ((registration, b" "), (submit, b" "), (registration[:-2], b"A: b\r\n")):
        connection = stack.enter_context(connect(control, address))
        connection.settimeout(0.3)
        connection.sendall(start)
        drips[connection] = drip
    began, ended = time.monotonic(), []
    answered = b""
    while drips and time.monotonic() < began + 3 * gunicorn_worker.HEAD_S:
        for connection, drip in list(drips.items()):
            try:
                connection.sendall(drip)
                while piece := connection.recv(4096):
                    answered += piece
            except TimeoutError:
                continue
            except OSError:
                pass
            ended.append(time.monotonic() - began)
            del drips[connection]
    assert len(ended) == 3
    assert all(
        gunicorn_worker.HEAD_S - 1 < seconds < 2 * gunicorn_worker.HEAD_S for seconds in ended
    ), ended
    assert answered.count(b'"body_too_slow"') == 2


def asked_until_refused(mesh: DevMesh, source: str, request: bytes) -> list[int]:
    """The statuses of one request after the other from an address, up to the first 429."""
    statuses: list[int] = []
    while 429 not in statuses and len(statuses) < gate.BURST + 200:
        with connect(mesh, source) as connection:
            connection.sendall(request)
            with contextlib.suppress(OSError, IndexError):
                status, headers, body = answers(connection)
                statuses.append(status)
    assert (json.loads(body)["rc"], headers["connection"]) == ("rate_limited", "close")
    assert int(headers["retry-after"]) >= 1
    return statuses


def test_an_address_that_shows_no_token_gets_429_and_others_are_served(
    control: DevMesh, address: str
) -> None:
    request = head("POST", "/nodes/register", 2, signature(), "Connection: close") + b"{}"
    assert set(asked_until_refused(control, address, request)) == {401, 429}
    assert control.rae.submit([{"kind": "never"}])[0].created


def test_strangers_take_nothing_from_who_shows_a_token_at_the_same_address(
    make_mesh: MakeMesh, address: str
) -> None:
    mesh = make_mesh()
    node, tiny = (mesh.admin.enrol(name, kind=kind) for name, kind in NODES)
    proof = signature(node.enrolment_secret, node.node_id, REGISTRATION)
    asked_until_refused(mesh, address, head("GET", "/tasks", 0, "Connection: close"))
    shown = (
        ("GET", "/tasks", f"Authorization: Bearer {mesh.credentials()['submit_token']}", b""),
        ("POST", "/nodes/register", f"Authorization: Bearer {tiny.enrolment_secret}", TINY),
        ("POST", "/nodes/register", proof, REGISTRATION),
    )
    for method, path, line, body in shown:
        for _ in range(10):  # beside more of the strangers
            with connect(mesh, address) as connection:
                connection.sendall(head("GET", "/tasks", 0, "Connection: close"))
                assert answers(connection)[0] in {401, 429}
        with connect(mesh, address) as connection:
            connection.sendall(head(method, path, len(body), line, "Connection: close") + body)
            assert answers(connection)[0] == 200


def test_idle_strangers_make_way_and_do_not_take_the_last_descriptor(
    make_mesh: MakeMesh, stack: ExitStack
) -> None:
    own = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (own[1], own[1]))
    try:
        control = make_mesh()
        pid = control.pid("worker")
        before = files(pid)
        sources = [next(ADDRESSES) for _ in range(6)]
        for number in range(gate.OF_ALL + 500):
            connection = stack.enter_context(connect(control, sources[number % 6]))
            connection.sendall(head("POST", "/nodes/register", 1, signature(node_id=f"n{number}")))
        assert control.rae.submit([{"kind": "never"}])[0].created
        until(lambda: files(pid) - before <= gate.OF_ALL + 20, "the oldest connections are gone")
        assert "Traceback" not in (control.data / "log" / "gunicorn.out").read_text()
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, own)


def test_where_few_files_may_be_open_idle_strangers_keep_no_caller_out(stack: ExitStack) -> None:
    with DevMesh((), run_as=["prlimit", "--nofile=1024:1024"]) as mesh:
        sources = [next(ADDRESSES) for _ in range(4)]
        for number in range(900):
            stack.enter_context(connect(mesh, sources[number % 4]))
        began = time.monotonic()
        assert mesh.rae.submit([{"kind": "never"}])[0].created
        assert time.monotonic() - began < gunicorn_worker.HEAD_S / 2


def test_one_token_has_its_connections_however_its_header_is_written(
    make_mesh: MakeMesh, stack: ExitStack, address: str
) -> None:
    own = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (own[1], own[1]))
    try:
        mesh = make_mesh()
        pid, token = mesh.pid("worker"), mesh.credentials()["submit_token"]
        before = files(pid)
        for number in range(gate.OF_A_CALLER + 100):
            connection = stack.enter_context(connect(mesh, address))
            spaced = " " * (1 + number % 1000)
            scheme = ("Bearer", "bearer", "BEARER")[number // 1000]
            connection.sendall(
                head("GET", "/healthz", 0, f"Authorization: {scheme}{spaced}{token}")
            )
            connection.recv(4096)
        until(
            lambda: files(pid) - before <= gate.OF_A_CALLER + 10, "the oldest connections are gone"
        )
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, own)


def test_who_asks_without_waiting_for_answers_leaves_their_turn_to_others(
    control: DevMesh, address: str
) -> None:
    asked = 20_000
    with connect(control, address) as connection:
        connection.settimeout(20)
        flood = threading.Thread(
            target=_send, args=(connection, b"GET /x HTTP/1.1\r\n\r\n" * asked)
        )
        flood.start()
        # Beside it, a submit is answered, and not only when all of that is.
        assert control.rae.submit([{"kind": "cli", "params": {"command": "true"}}])
        data = b""
        with contextlib.suppress(OSError):
            while piece := connection.recv(65536):
                data += piece
        flood.join()
    found = data.count(b"HTTP/1.1 404"), data.count(b"HTTP/1.1 429")
    assert 0 < found[0] < asked / 2
    assert found[1] <= 1, "the first refusal ends the connection"


def _send(connection: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        connection.sendall(data)


def test_an_unfinished_head_has_little_room(control: DevMesh, address: str) -> None:
    with connect(control, address) as connection:
        connection.sendall(b"GET /x HTTP/1.1\r\n" + b"X-Long: " + b"x" * 100_000)
        status, _, body = answers(connection)
    assert status == 431
    assert json.loads(body)["rc"] == "invalid_request"


def test_a_token_without_its_secret_does_not_silence_its_node(
    make_mesh: MakeMesh, stack: ExitStack, address: str
) -> None:
    mesh = make_mesh()
    made = mesh.admin.enrol("victim")
    client = NodeClient(mesh.url, "victim", made.enrolment_secret)
    client.register(RegisterRequest(node_id="victim", machine="m", ack=True))
    forged = SIGNED.replace("ghost", "victim").replace('ts="1"', f'ts="{time.time():.0f}"')
    for _ in range(20):
        connection = stack.enter_context(connect(mesh, address))
        token = f"Authorization: Bearer {client.token}"
        connection.sendall(head("POST", "/tasks/result", MAX_RESULT_BYTES, token, forged) + b"x")
    time.sleep(0.2)
    assert client.heartbeat(Heartbeat(node_id="victim", leases=[])).incarnation
