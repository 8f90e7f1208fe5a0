"""Which certificates are accepted, and what a caller reads when none is, or no answer comes."""

from __future__ import annotations

import json
import socket
import ssl
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from rae_protocol.answers import Answer
from rae_protocol.client import RaeClient
from rae_protocol.errors import RemoteError, Unreachable
from rae_protocol.models import RegisterRequest
from rae_protocol.node_client import NodeClient
from rae_protocol.session import CA_VARIABLES
from rae_protocol.transport import Backoff, BearerAuth, Transport
from tests.certificates import Authority, Front, tls_front
from tests.messages import faults

MakeFront = Callable[..., Front]
VARIABLES = ("RAE_CA_FILE", *CA_VARIABLES)


@pytest.fixture(autouse=True)
def _no_variables(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


@pytest.fixture
def front(server: Any, authority: Authority) -> Iterator[MakeFront]:
    with ExitStack() as stack:

        def make(**options: Any) -> Front:
            port = int(server.url.rpartition(":")[2])
            return stack.enter_context(tls_front(authority.issue(**options), port))

        yield make


def _any(answer: Answer) -> bytes:
    return answer.body(99)


def failure(url: str, retry: Any = True, **options: Any) -> tuple[Unreachable, list[float]]:
    """How a call ends that gets no answer, and the pauses that it made."""
    pauses: list[float] = []
    http = Transport(url, sleep=pauses.append, backoff=Backoff(tries=3, base_s=0.01), **options)
    with pytest.raises(Unreachable) as caught:
        http.call("GET", "/x", read=_any, auth=BearerAuth(None), retry=retry)
    assert faults(caught.value.message) == []
    return caught.value, pauses


def test_a_private_ca_that_is_named_is_trusted_by_both_clients(
    front: MakeFront, authority: Authority, server: Any, answer: Any
) -> None:
    url, ca_file = front().url, str(authority.file)
    server.answers[:] = [answer(body=b'{"tasks":[],"next":null}')]
    assert RaeClient(url, "t", ca_file=ca_file).tasks().tasks == []
    refusal = {"rc": "not_enrolled", "message": "enrol it", "detail": {}}
    server.answers[:] = [answer(401, json.dumps(refusal).encode())]
    about = RegisterRequest.model_construct(node_id="n1")
    with pytest.raises(RemoteError, match="enrol it"):
        NodeClient(url, "n1", "secret", ca_file=ca_file).register(about)


@pytest.mark.parametrize("name", VARIABLES)
def test_a_ca_of_the_environment_is_trusted(
    front: MakeFront, authority: Authority, server: Any, answer: Any,
    monkeypatch: pytest.MonkeyPatch, name: str,
) -> None:  # fmt: skip
    monkeypatch.setenv(name, str(authority.file))
    server.answers[:] = [answer(body=b'{"nodes":[]}')]
    assert RaeClient(front().url, "t").nodes() == []


def test_the_file_that_is_named_comes_before_the_environment(
    front: MakeFront, authority: Authority, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Authority(tmp_path / "other")
    monkeypatch.setenv("RAE_CA_FILE", str(authority.file))
    error, _ = failure(front().url, ca_file=str(other.file))
    assert error.reason == "certificate"
    assert str(other.file) in error.message


def test_an_unknown_ca_is_named_with_the_way_to_trust_it(front: MakeFront) -> None:
    where = front()
    error, pauses = failure(where.url)
    assert (error.reason, error.unsent, pauses) == ("certificate", True, [])
    assert f"{where.url} has a certificate of a CA that is not trusted here" in error.message
    assert all(way in error.message for way in ("ca_file", "--ca-file", "RAE_CA_FILE"))
    assert "unreachable" not in error.message


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"ends": timedelta(hours=-1)}, ("expired", "Renew the certificate")),
        ({"begins": timedelta(hours=1)}, ("not yet valid", "clock")),
        ({"host": "control.example"}, ("another host name", "127.0.0.1", "Use a name")),
    ],
)
def test_a_certificate_that_is_not_accepted_says_what_is_wrong_with_it(
    front: MakeFront, authority: Authority, options: dict[str, Any], words: tuple[str, ...]
) -> None:
    error, pauses = failure(front(**options).url, ca_file=str(authority.file))
    assert (error.reason, pauses) == ("certificate", [])
    assert all(word in error.message for word in words), error.message


@pytest.mark.parametrize("content", [None, b"", b"no certificate", b"\xff\x00"])
def test_a_ca_file_that_cannot_be_used_is_named(
    front: MakeFront, tmp_path: Path, content: bytes | None
) -> None:
    file = tmp_path / "mine.pem"
    if content is not None:
        file.write_bytes(content)
    error, _ = failure(front().url, ca_file=str(file))
    assert (error.reason, error.unsent) == ("ca_file", True)
    assert str(file) in error.message


def test_a_ca_file_is_not_looked_at_where_no_certificate_comes(server: Any) -> None:
    http = Transport(server.url, ca_file="/nowhere.pem")
    body = http.call("GET", "/x", read=_any, auth=BearerAuth(None))
    assert body == b"{}"


def test_refused_unknown_silent_and_plain_servers_are_distinguished(
    server: Any, free_port: int
) -> None:
    refused, _ = failure(f"http://127.0.0.1:{free_port}", retry="unsent")
    assert (refused.reason, refused.unsent) == ("refused", True)
    assert "refused" in refused.message
    unknown, _ = failure("http://no-such-name.invalid:1")
    assert (unknown.reason, unknown.unsent) == ("unknown_name", True)
    assert "that name" in unknown.message
    with socket.create_server(("127.0.0.1", 0)) as silent:
        port = silent.getsockname()[1]
        late, _ = failure(f"http://127.0.0.1:{port}", read_timeout_s=0.1)
    assert (late.reason, late.unsent) == ("timeout", False)
    assert "in time" in late.message
    plain, _ = failure(server.url.replace("http:", "https:"))
    assert (plain.reason, plain.unsent) == ("tls", True)
    assert "http://" in plain.message


def test_a_host_that_takes_no_connection_timed_out() -> None:
    with ExitStack() as stack:
        full = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address = full.getsockname()
        for _ in range(4):  # what the backlog holds, and more
            one = stack.enter_context(socket.socket())
            one.setblocking(False)
            one.connect_ex(address)
        error, _ = failure(f"http://127.0.0.1:{address[1]}", connect_timeout_s=0.2)
    assert (error.reason, error.unsent) == ("timeout", True)
    assert "connecting timed out" in error.message


def test_the_test_certificates_satisfy_the_strictest_check(
    front: MakeFront, authority: Authority
) -> None:
    context = ssl.create_default_context(cafile=str(authority.file))
    context.verify_flags |= ssl.VERIFY_X509_STRICT
    port = int(front().url.rpartition(":")[2])
    with (
        socket.create_connection(("127.0.0.1", port)) as plain,
        context.wrap_socket(plain, server_hostname="127.0.0.1") as secured,
    ):
        assert secured.version() is not None
