"""`input_url_hosts`: a download connects to an address that the list allows, and to no other."""

from __future__ import annotations

import datetime
import ipaddress
import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.hashes import SHA256
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID

from rae_node.attempt.download import fetch_url
from rae_node.config.files import NodeConfig
from rae_node.config.url_hosts import host_rule, is_public, rules_of
from rae_node.errors import HandBack, TaskFailure
from rae_protocol.session import CA_VARIABLES
from tests.certificates import Authority, tls_front
from tests.integration.node.harness import MakeRig


class Service(BaseHTTPRequestHandler):
    """Something of the machine's own that answers whoever asks."""

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self.server.asked.append(self.headers["Host"])  # type: ignore[attr-defined]
        self.send_response(200)
        self.end_headers()
        self.wfile.write(b"the owner's own")


@pytest.fixture
def service() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Service)
    server.asked = []  # type: ignore[attr-defined]
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield server
    server.shutdown()
    thread.join()
    server.server_close()


def asked(server: ThreadingHTTPServer) -> list[str]:
    found: list[str] = server.asked  # type: ignore[attr-defined]
    return found


def fetch(url: str, target: Path, hosts: list[str], *answers: list[str]) -> None:
    """With a name server that gives these answers, one after the other."""
    left = iter(answers)
    fetch_url("f", url, target, hosts, 1000, 5.0, lambda _: None, lambda _: next(left))


@pytest.mark.parametrize(
    "url",
    [
        "http://127.0.0.1:{port}\\@allowed.example/x",
        "http://127.0.0.1:{port}/\\@allowed.example/x",
        "http://allowed.example@127.0.0.1:{port}/x",
        "http://127.0.0.1:{port}#@allowed.example/x",
        "http://0x7f000001:{port}/x",
        "http://127.1:{port}/x",
        "http://127.0.0.1.:{port}/x",
        "http://[::ffff:127.0.0.1]:{port}/x",
        "http://localhost:{port}/x",
        "http://LOCALHOST:{port}/x",
    ],
)
def test_no_spelling_of_a_url_reaches_this_machine_through_an_allowed_name(
    make_rig: MakeRig, service: ThreadingHTTPServer, url: str
) -> None:
    rig = make_rig(input_url_hosts=["allowed.example", "localhost"])
    source = {"url": url.format(port=service.server_port)}
    task = {"params": {"command": "wc", "args": ["-c", "f"]}, "inputs": {"f": source}}
    result, _ = rig.run("cli", **task)
    assert result.error is not None
    assert result.error.code in {"E_DENY", "E_INPUT"}
    assert asked(service) == []


@pytest.mark.parametrize(
    "address",
    [
        "127.0.0.1", "127.8.8.8", "0.0.0.0", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.1.1",
        "169.254.169.254", "100.64.0.1", "100.100.100.100", "224.0.0.1", "239.1.1.1", "240.0.0.1",
        "255.255.255.255", "192.0.2.1", "198.18.0.1", "::", "::1", "::7f00:1", "::ffff:127.0.0.1",
        "::ffff:10.0.0.1", "64:ff9b::7f00:1", "64:ff9b::10.0.0.1", "64:ff9b:1::1", "fe80::1",
        "fe80::1%2", "fec0::1", "fc00::1", "fd7a:115c:a1e0::1", "ff02::1", "2002:7f00:1::",
        "2001:0:1::1", "2001:db8::1",
    ],
)  # fmt: skip
def test_a_name_on_the_internet_never_has_an_address_of_this_machine_or_its_networks(
    tmp_path: Path, address: str
) -> None:
    assert not is_public(ipaddress.ip_address(address))
    with pytest.raises(TaskFailure, match="no address that") as denied:
        fetch("http://files.test:9/f", tmp_path / "f", ["files.test"], [address])
    assert denied.value.rc == "E_DENY"
    assert address not in denied.value.message.split()


@pytest.mark.parametrize(
    "address", ["93.184.215.14", "1.1.1.1", "2606:4700::1111", "::ffff:1.1.1.1", "64:ff9b::101:101"]
)
def test_an_address_on_the_internet_is_allowed_unless_it_is_this_machines(address: str) -> None:
    rule = host_rule("files.test")
    assert rule.allows(address)
    assert not rule.allows(address, own=True)


def test_a_host_that_the_owner_puts_into_a_network_may_be_there_alone(
    tmp_path: Path, service: ThreadingHTTPServer
) -> None:
    url, hosts = f"http://files.test:{service.server_port}/f", ["files.test=127.0.0.0/8"]
    with pytest.raises(TaskFailure, match="no address that"):
        fetch(url, tmp_path / "f", hosts, ["192.168.1.1", "::1"])
    fetch(url, tmp_path / "f", hosts, ["::1", "127.0.0.1"])
    assert (tmp_path / "f").read_bytes() == b"the owner's own"


def test_a_download_connects_to_the_address_that_was_looked_at(
    tmp_path: Path, service: ThreadingHTTPServer
) -> None:
    port = service.server_port
    # A second look-up would find no answer any more.
    fetch(f"http://Files.test:{port}/f", tmp_path / "f", ["files.test=127.0.0.1"], ["127.0.0.1"])
    assert [name.lower() for name in asked(service)] == [f"files.test:{port}"]


def test_tls_names_and_checks_the_host_and_not_its_address(tmp_path: Path) -> None:
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "files.test")])
    now = datetime.datetime.now(datetime.timezone.utc)
    made = x509.CertificateBuilder(name, name, key.public_key(), 1, now, now.replace(year=2199))
    file = tmp_path / "server.pem"
    file.write_bytes(
        key.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        + made.sign(key, SHA256()).public_bytes(Encoding.PEM)
    )
    names: list[str | None] = []
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(file)
    context.sni_callback = lambda _, name, __: names.append(name)
    with context.wrap_socket(socket.create_server(("127.0.0.1", 0)), server_side=True) as door:
        door.settimeout(10)

        def serve() -> None:
            with pytest.raises(
                ssl.SSLError, match=r"ALERT|alert"
            ):  # the client checks every address itself
                door.accept()

        thread = threading.Thread(target=serve)
        thread.start()
        url = f"https://files.test:{door.getsockname()[1]}/f"
        with pytest.raises(TaskFailure, match="a CA that is not trusted here"):
            fetch(url, tmp_path / "f", ["files.test=127.0.0.1"], ["127.0.0.1"])
        thread.join()
    assert names == ["files.test"]


def test_an_input_comes_from_a_host_whose_ca_the_environment_names(
    tmp_path: Path, service: ThreadingHTTPServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority = Authority(tmp_path / "ca")
    for name in CA_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    with tls_front(authority.issue("files.test"), service.server_port) as front:
        url = f"https://files.test:{front.url.rpartition(':')[2]}/f"
        monkeypatch.setenv("SSL_CERT_FILE", str(authority.file))
        fetch(url, tmp_path / "f", ["files.test=127.0.0.1"], ["127.0.0.1"])
        assert (tmp_path / "f").read_bytes() == b"the owner's own"
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "gone.pem"))
        with pytest.raises(HandBack, match=r"gone.pem cannot be read"):
            fetch(url, tmp_path / "g", ["files.test=127.0.0.1"], ["127.0.0.1"])


@pytest.mark.parametrize(
    ("entry", "host", "address", "allowed"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1", True),
        ("127.0.0.1", "127.0.0.1", "127.0.0.2", False),
        ("::1", "::1", "::1", True),
        ("[0::1]", "::1", "::1", True),
        ("NAS.lan=192.168.1.0/24", "nas.lan", "192.168.1.9", True),
        ("nas.lan=192.168.1.0/24", "nas.lan", "192.168.2.9", False),
        ("nas.lan=192.168.1.9", "nas.lan", "192.168.1.9", True),
        ("nas.lan=fd00::/8", "nas.lan", "192.168.1.9", False),
        ("nas.lan", "nas.lan", "192.168.1.9", False),
    ],
)
def test_an_entry_allows_what_it_says(entry: str, host: str, address: str, allowed: bool) -> None:
    (rule,) = rules_of(host, [entry, "other.example"])
    assert rule.allows(address) is allowed


@pytest.mark.parametrize(
    "entry",
    ["a.example:80", "http://a.example", "a.example/", "10.0.0.0/8", "0x7f.1", "bücher.example", "",
     "127.0.0.1=10.0.0.1", "a.example=", "a.example=b.example", "a.example=10.0.0.1/8", "*"],
)  # fmt: skip
def test_an_entry_that_names_no_host_is_refused_with_the_file(entry: str) -> None:
    config: dict[str, Any] = {"node_id": "n1", "trusted": True, "capabilities": {}}
    config |= {"heartbeat_interval_sec": 30.0, "rae_endpoint": "http://127.0.0.1:1"}
    NodeConfig.model_validate(config | {"input_url_hosts": ["a.example"]})
    with pytest.raises(ValueError, match="input_url_hosts"):
        NodeConfig.model_validate(config | {"input_url_hosts": [entry]})
