"""Control's TLS listener beside the plain one: versions, renewal, refusals, limits of strangers."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import socket
import ssl
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from itertools import count
from pathlib import Path

import pytest
import requests

from rae_control.core import gate
from rae_control.server import gunicorn_worker
from rae_protocol.client import RaeClient
from rae_protocol.errors import RemoteError, Unreachable
from rae_protocol.models import RegisterRequest
from rae_protocol.node_client import NodeClient
from tests.certificates import Authority
from tests.integration.test_private_ca import raectl
from tests.messages import faults
from tests.until import until
from tools.devmesh import DevMesh

POLLS = 200
ADDRESSES = (f"127.0.9.{number}" for number in count(1))


@dataclass
class Secure:
    """A control with a TLS listener, and the files of its certificate."""

    mesh: DevMesh
    authority: Authority
    folder: Path
    port: int

    @property
    def url(self) -> str:
        return f"https://127.0.0.1:{self.port}"

    @property
    def trust(self) -> ssl.SSLContext:
        return ssl.create_default_context(cafile=str(self.authority.file))

    def logged(self, event: str) -> list[str]:
        lines = (self.mesh.data / "log" / "gunicorn.out").read_text().splitlines()
        return [line for line in lines if f'"{event}"' in line]

    def plain(self, source: str = "127.0.0.1") -> socket.socket:
        """A connection to the TLS port, without a handshake."""
        return socket.create_connection(("127.0.0.1", self.port), 20, source_address=(source, 0))

    def connect(self) -> ssl.SSLSocket:
        return self.trust.wrap_socket(self.plain(), server_hostname="127.0.0.1")

    def serial(self) -> str:
        """Of the certificate that a new connection gets, whatever it is worth."""
        seeing = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        seeing.check_hostname, seeing.verify_mode = False, ssl.CERT_NONE
        with seeing.wrap_socket(self.plain()) as shown:
            return hashlib.sha256(shown.getpeercert(binary_form=True) or b"").hexdigest()

    def renew(self, cert: Path, key: Path | None = None, *, taken: bool = True) -> None:
        """Replace the files as `tailscale cert` does; wait until a new connection shows it."""
        before = self.serial()
        put(self.folder / "tls.crt", cert.read_bytes())
        put(self.folder / "tls.key", (key or cert).read_bytes())
        if taken:
            until(lambda: self.serial() != before, "the new certificate is shown")


def put(file: Path, content: bytes) -> None:
    part = file.with_suffix(".part")
    part.write_bytes(content)
    part.chmod(0o600)
    part.replace(file)


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@pytest.fixture(scope="module")
def secure(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Secure]:
    folder, port = tmp_path_factory.mktemp("tls"), free_port()
    authority = Authority(folder / "ca")
    made = authority.issue()
    for name in ("tls.crt", "tls.key"):
        put(folder / name, made.read_bytes())
    settings = {
        "tls_cert_file": str(folder / "tls.crt"), "tls_key_file": str(folder / "tls.key"),
        "tls_port": port, "heartbeat_timeout_s": 120,
    }  # fmt: skip
    with DevMesh((), control=settings) as mesh:
        yield Secure(mesh, authority, folder, port)


@pytest.fixture
def stack() -> Iterator[ExitStack]:
    with ExitStack() as closing:
        yield closing


@pytest.fixture
def address() -> str:
    """Of a stranger whom control does not know yet."""
    return next(ADDRESSES)


def s_client(secure: Secure, *words: str) -> str:
    """What openssl prints of a handshake; "" where there was none."""
    command = ["openssl", "s_client", "-connect", f"127.0.0.1:{secure.port}", "-CAfile",
               str(secure.authority.file), "-brief", *words]  # fmt: skip
    done = subprocess.run(
        command, input="", capture_output=True, text=True, timeout=20, check=False
    )
    return done.stderr if "CONNECTION ESTABLISHED" in done.stderr else ""


def test_openssl_gets_tls_1_2_and_1_3_with_forward_secrecy_and_nothing_older(
    secure: Secure,
) -> None:
    lax = ("-cipher", "ALL:COMPLEMENTOFALL:@SECLEVEL=0")
    assert [s_client(secure, version, *lax) for version in ("-tls1", "-tls1_1")] == ["", ""]
    assert "Protocol version: TLSv1.3" in s_client(secure)
    older = s_client(secure, "-tls1_2")
    assert "Verification: OK" in older and "ECDHE-ECDSA-AES256-GCM-SHA384" in older
    assert s_client(secure, "-groups", "ffdhe8192:X448") == ""
    listed = subprocess.run(
        ["openssl", "ciphers", "-tls1_2", "-s", "ALL:COMPLEMENTOFALL:@SECLEVEL=0"],
        capture_output=True, text=True, timeout=20, check=True,
    ).stdout.strip().split(":")  # fmt: skip
    modern = ("GCM-SHA256", "GCM-SHA384", "CHACHA20-POLY1305")
    weak = [name for name in listed if "ECDSA" in name and not name.endswith(modern)]
    accepted = [
        name for name in weak if s_client(secure, "-tls1_2", "-cipher", f"{name}:@SECLEVEL=0")
    ]
    assert (len(weak) > 3, accepted) == (True, [])


def test_a_renewed_certificate_drops_none_of_two_hundred_open_polls(
    secure: Secure, stack: ExitStack
) -> None:
    admin, nodes = secure.mesh.admin, []
    for number in range(POLLS):
        name = f"poll{number}"
        secret = admin.enrol(name, kind="bearer").enrolment_secret
        client = NodeClient(secure.mesh.url, name, secret, kind="bearer")
        about = RegisterRequest(node_id=name, machine=name, slots=["cpu0"])
        nodes.append(client.register(about).node_token)
    polls = [stack.enter_context(secure.connect()) for _ in nodes]
    for poll, token in zip(polls, nodes, strict=True):
        first = "GET /tasks/poll?wait=30&slots=cpu0 HTTP/1.1\r\nHost: x"
        poll.sendall(f"{first}\r\nAuthorization: Bearer {token}\r\n\r\n".encode())
    metrics = f"{secure.mesh.url}/metrics"
    head = {"Authorization": f"Bearer {secure.mesh.credentials()['admin_token']}"}
    open_polls = f"polls_open {POLLS}"
    until(lambda: open_polls in requests.get(metrics, headers=head, timeout=5).text, "all wait")

    secure.renew(secure.authority.issue())
    assert open_polls in requests.get(metrics, headers=head, timeout=5).text
    secure.mesh.rae.submit([{"kind": "x", "task_id": f"t{number}"} for number in range(POLLS)])
    got = set()
    for poll in polls:
        text = b""
        while b"\r\n\r\n" not in text or not text.endswith(b"}"):
            piece = poll.recv(65536)
            assert piece, text
            text += piece
        assert text.startswith(b"HTTP/1.1 200"), text
        got.add(json.loads(text.partition(b"\r\n\r\n")[2])["task"]["task_id"])
    assert len(got) == POLLS


def test_a_bad_new_pair_is_refused_with_an_error_and_the_old_one_stays(secure: Secure) -> None:
    one, other = secure.authority.issue(), secure.authority.issue()
    before = secure.serial()
    for cert, key in ((one, other), (secure.folder / "nonsense", one)):
        (secure.folder / "nonsense").write_text("no certificate")
        known = len(secure.logged("certificate_refused"))
        secure.renew(cert, key, taken=False)
        until(partial(_more_than, secure, known), "it is logged")
        assert secure.serial() == before
    assert '"level": "error"' in secure.logged("certificate_refused")[-1].lower()
    secure.renew(one)
    assert RaeClient(secure.url, "x", ca_file=str(secure.authority.file)).health()


def _more_than(secure: Secure, known: int) -> bool:
    return len(secure.logged("certificate_refused")) > known


@pytest.mark.parametrize(
    ("host", "ends", "words"),
    [
        ("127.0.0.1", timedelta(hours=-1), ("expired", "Renew the certificate")),
        ("elsewhere.example", timedelta(days=1), ("another host name", "127.0.0.1")),
    ],
)
def test_both_clients_refuse_an_expired_certificate_and_one_of_another_host(
    secure: Secure, host: str, ends: timedelta, words: tuple[str, ...]
) -> None:
    trust = str(secure.authority.file)
    secure.renew(secure.authority.issue(host, begins=timedelta(days=-2), ends=ends))
    said = []
    with pytest.raises(Unreachable) as caught:
        RaeClient(secure.url, "x", ca_file=trust).tasks()
    said.append(caught.value.message)
    with pytest.raises(Unreachable) as caught:
        about = RegisterRequest.model_construct(node_id="n1")
        NodeClient(secure.url, "n1", "secret", ca_file=trust).register(about)
    said.append(caught.value.message)
    code, text = raectl(secure.mesh, secure.url, "--ca-file", trust, "nodes", "list")
    said.append(text)
    assert code == 3
    for message in said:
        assert all(word in message for word in words), message
        assert faults(message) == []
    secure.renew(secure.authority.issue())
    assert raectl(secure.mesh, secure.url, "--ca-file", trust, "nodes", "list")[0] == 0


def test_an_agent_works_over_control_s_own_tls(secure: Secure) -> None:
    trust = str(secure.authority.file)
    secure.mesh.add_node("over-tls", {"rae_endpoint": secure.url, "ca_file": trust})
    secure.mesh.wait_node("over-tls", "online")
    submit = ("submit", "--wait", "--", "echo", "hello")
    code, said = raectl(secure.mesh, secure.url, "--ca-file", trust, *submit)
    assert (code, "succeeded" in said) == (0, True), said
    secure.mesh.nodes["over-tls"].stop()


def test_large_bodies_go_both_ways_over_tls(secure: Secure, tmp_path: Path) -> None:
    content, path = os.urandom(16 * 1024**2), "/blobs/"
    head = {"Authorization": f"Bearer {secure.mesh.credentials()['submit_token']}"}
    path += hashlib.sha256(content).hexdigest()
    trust = str(secure.authority.file)
    sent = requests.put(secure.url + path, content, headers=head, verify=trust, timeout=60)
    assert sent.status_code in {200, 201}, sent.text
    came = requests.get(secure.url + path, headers=head, verify=trust, timeout=60)
    assert came.content == content


def test_plain_http_to_the_tls_port_is_answered_and_rarely_logged(
    secure: Secure, address: str
) -> None:
    with pytest.raises(RemoteError, match="https://"):
        RaeClient(secure.url.replace("https", "http"), "x").tasks()
    for request in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        b"\0",
        b"SSH-2",
    ):
        with secure.plain(address) as connection:
            connection.sendall(request)
            assert everything(connection).startswith(b"HTTP/1.1 400 ")
    for _ in range(100):
        with secure.plain(address) as connection:
            connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
            connection.recv(4096)
    assert 1 <= len(secure.logged("tls_failed")) < 60
    assert secure.serial()


def test_what_is_no_tls_after_its_first_byte_or_handshake_ends_the_connection(
    secure: Secure, address: str
) -> None:
    for garbage in (b"\x16" * 600, b"\x16\x03\x01\x02\x00" + b"\xff" * 512):
        with secure.plain(address) as connection:
            connection.sendall(garbage)
            everything(connection)
    shaken = secure.connect()
    with shaken, socket.socket(fileno=os.dup(shaken.fileno())) as raw:
        raw.sendall(b"\x17\x03\x03\x00\x20" + b"\xff" * 32)
        raw.settimeout(5)
        everything(raw)
    assert "Traceback" not in (secure.mesh.data / "log" / "gunicorn.out").read_text()


def test_a_handshake_that_is_silent_or_slow_ends_in_time(
    secure: Secure, address: str, stack: ExitStack
) -> None:
    silent, slow, mute = (
        stack.enter_context(secure.plain(address)), stack.enter_context(secure.plain(address)),
        stack.enter_context(secure.connect()),
    )  # fmt: skip
    began, ended = time.monotonic(), dict[socket.socket, float]()
    slow.sendall(b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03")
    for connection in (silent, slow, mute):
        connection.settimeout(0.3)
    while len(ended) < 3 and time.monotonic() < began + 2 * gunicorn_worker.HEAD_S:
        for connection in {silent, slow, mute} - set(ended):
            with contextlib.suppress(TimeoutError):
                try:
                    if connection is slow:
                        connection.sendall(b"\0")
                    if connection.recv(10):
                        continue
                except (ConnectionError, ssl.SSLError):
                    pass
                ended[connection] = time.monotonic() - began
    assert len(ended) == 3
    assert all(gunicorn_worker.HEAD_S - 1 < s < gunicorn_worker.HEAD_S + 3 for s in ended.values())


def test_unfinished_handshakes_count_against_their_address(
    secure: Secure, address: str, stack: ExitStack
) -> None:
    begun = []
    for _ in range(gate.OF_ONE + 50):
        connection = stack.enter_context(secure.plain(address))
        connection.sendall(b"\x16\x03\x01")
        begun.append(connection)
    for connection in begun[:50]:
        assert everything(connection) == b""
    begun[-1].settimeout(0.2)
    with pytest.raises(TimeoutError):
        begun[-1].recv(1)
    assert RaeClient(secure.url, "x", ca_file=str(secure.authority.file)).health()


def test_a_flood_of_handshakes_delays_no_submit(secure: Secure, address: str) -> None:
    stop, made = threading.Event(), [0]
    seeing = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    seeing.check_hostname, seeing.verify_mode = False, ssl.CERT_NONE

    def hello() -> bytes:
        out = ssl.MemoryBIO()
        with contextlib.suppress(ssl.SSLWantReadError):
            seeing.wrap_bio(ssl.MemoryBIO(), out).do_handshake()
        return out.read()

    first = hello()

    def flood() -> None:
        while not stop.is_set():
            with ExitStack() as some, contextlib.suppress(OSError):
                for _ in range(100):
                    some.enter_context(secure.plain(address)).sendall(first)
                    made[0] += 1

    thread = threading.Thread(target=flood)
    thread.start()
    slowest = 0.0
    for number in range(30):
        began = time.monotonic()
        assert secure.mesh.rae.submit([{"kind": "never", "task_id": f"beside{number}"}])
        slowest = max(slowest, time.monotonic() - began)
    stop.set()
    thread.join()
    assert made[0] > 100
    assert slowest < 5, slowest


def everything(connection: socket.socket) -> bytes:
    """What comes until the connection ends."""
    data = b""
    with contextlib.suppress(ConnectionError):
        while piece := connection.recv(65536):
            data += piece
    return data
