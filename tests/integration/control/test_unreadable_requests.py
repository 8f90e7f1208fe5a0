"""What is no HTTP request is refused like everything else, and its words are kept nowhere."""

from __future__ import annotations

import json
import socket
from urllib.parse import urlsplit

import pytest

from tests.until import until
from tools.devmesh import DevMesh

SECRET = b"rae_do_not_keep_me"


@pytest.mark.parametrize(
    ("request_bytes", "status"),
    [
        (b"Authorization: Bearer " + SECRET + b"\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nAuthorization : Bearer " + SECRET + b"\r\n\r\n", 400),
        (b"GET / HTTP/1.1\r\nA: b\r\n Bearer " + SECRET + b"\r\n\r\n", 400),
        (b"GET / HTTP/" + SECRET + b"\r\n\r\n", 400),
        (b"GET /" + SECRET * 600 + b" HTTP/1.1\r\n\r\n", 414),
        (b"GET / HTTP/1.1\r\nA: " + SECRET * 600 + b"\r\n\r\n", 431),
    ],
)
def test_an_unreadable_request_is_neither_echoed_nor_logged(
    control: DevMesh, request_bytes: bytes, status: int
) -> None:
    """Contract: C5."""
    log = control.data / "log" / "gunicorn.out"
    before = log.read_bytes().count(b"request_unreadable")
    port = urlsplit(control.url).port
    with socket.create_connection(("127.0.0.1", port), 10) as connection:
        connection.sendall(request_bytes)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    head, _, body = answer.partition(b"\r\n\r\n")
    assert head.split()[1] == str(status).encode()
    assert json.loads(body)["rc"] == "invalid_request"
    assert SECRET not in answer
    until(lambda: log.read_bytes().count(b"request_unreadable") > before, "the log has its line")
    assert SECRET not in log.read_bytes()
