"""Who is refused before his body was read gets to see why, and no reset connection."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from http.client import HTTPConnection
from urllib.parse import urlsplit

import pytest

from rae_protocol.names import MAX_BLOB_BYTES
from tools.devmesh import DevMesh

BODY = b"x" * MAX_BLOB_BYTES
BLOB = f"/blobs/{hashlib.sha256(BODY).hexdigest()}"


@pytest.fixture(scope="module")
def small() -> Iterator[DevMesh]:
    """A control that takes few blobs."""
    with DevMesh((), control={"max_blob_bytes": 1024**2}) as mesh:
        yield mesh


@pytest.mark.parametrize("connection", ["close", "keep-alive"])
@pytest.mark.parametrize(
    ("method", "path", "token", "rc"),
    [
        ("PUT", BLOB, "submit_token", "blobs_full"),
        ("PUT", "/blobs/odd", "submit_token", "blob_mismatch"),
        ("PUT", BLOB, "url", "unauthorized"),
        ("POST", "/tasks", "submit_token", "unsupported_media"),
        ("POST", "/tasks", "url", "unauthorized"),
        ("POST", "/events", "submit_token", "method_not_allowed"),
        ("POST", "/nothing", "submit_token", "not_found"),
    ],
)
def test_an_answer_before_the_body_was_read_arrives(
    small: DevMesh, method: str, path: str, token: str, rc: str, connection: str
) -> None:
    address = urlsplit(small.url)
    headers = {
        "Authorization": f"Bearer {small.credentials()[token]}", "Connection": connection,
    }  # fmt: skip
    caller = HTTPConnection(str(address.hostname), address.port, timeout=30)
    try:
        caller.request(method, path, BODY[: 8 * 1024**2] if path == "/tasks" else BODY, headers)
        answer = caller.getresponse()
        assert json.loads(answer.read())["rc"] == rc
        assert (answer.status == 429) == (answer.headers["Retry-After"] is not None)
    finally:
        caller.close()
