"""Certificate and key of the TLS listener: what is refused, and with which way out."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from contextlib import ExitStack
from datetime import timedelta
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from rae_control.config import load_config
from rae_control.errors import ConfigError
from rae_control.maintenance.doctor import Finding, examine
from rae_control.server import sockets
from rae_control.server.tls import Pair, Tls
from tests.certificates import Authority
from tests.messages import faults


@pytest.fixture
def authority(tmp_path: Path) -> Authority:
    return Authority(tmp_path / "ca")


@pytest.fixture
def pair(authority: Authority) -> Pair:
    made = authority.issue()
    made.chmod(0o600)
    return Pair(made, made)


def refusal(of: Callable[[], object]) -> str:
    with pytest.raises(ConfigError) as caught:
        of()
    assert faults(str(caught.value)) == []
    return str(caught.value)


@pytest.mark.parametrize("mode", [0o644, 0o604, 0o620, 0o601])
def test_a_key_that_other_users_can_read_or_replace_is_refused(pair: Pair, mode: int) -> None:
    pair.key.chmod(mode)
    said = refusal(pair.context)
    assert f"mode 0{mode:o}" in said and f"chmod go-w,o= {pair.key}" in said


@pytest.mark.parametrize("mode", [0o400, 0o440, 0o600, 0o640])
def test_a_key_of_one_user_or_of_a_credential_is_taken(pair: Pair, mode: int) -> None:
    pair.key.chmod(mode)
    pair.context()


def test_a_key_of_another_certificate_is_refused(authority: Authority, pair: Pair) -> None:
    other = authority.issue()
    other.chmod(0o600)
    assert "belong together" in refusal(Pair(pair.cert, other).context)


@pytest.mark.parametrize("content", [b"", b"no PEM", b"\xff\x00"])
def test_what_is_no_certificate_is_refused(pair: Pair, tmp_path: Path, content: bytes) -> None:
    file = tmp_path / "file.pem"
    file.write_bytes(content)
    file.chmod(0o600)
    assert str(file) in refusal(Pair(file, pair.key).context)
    assert str(file) in refusal(Pair(pair.cert, file).context)


def test_files_that_are_not_there_are_named(pair: Pair, tmp_path: Path) -> None:
    said = refusal(Pair(pair.cert, tmp_path / "gone.key").context)
    assert "gone.key" in said and "No such file" in said


def test_a_key_with_a_password_is_refused_and_nobody_is_asked_for_it(
    pair: Pair, tmp_path: Path
) -> None:
    locked = tmp_path / "locked.key"
    locked.write_bytes(
        ec.generate_private_key(ec.SECP256R1()).private_bytes(
            serialization.Encoding.PEM,
            serialization.PrivateFormat.PKCS8,
            serialization.BestAvailableEncryption(b"secret"),
        )
    )
    locked.chmod(0o600)
    assert "without a password" in refusal(Pair(pair.cert, locked).context)


def test_files_are_taken_once_they_stay_the_same(authority: Authority, tmp_path: Path) -> None:
    cert, key = tmp_path / "tls.crt", tmp_path / "tls.key"

    def write(file: Path, content: bytes) -> None:
        file.write_bytes(content)
        file.chmod(0o600)

    one, two = authority.issue().read_bytes(), authority.issue().read_bytes()
    write(cert, one)
    write(key, one)
    tls = Tls(8443, Pair(cert, key))
    first = tls.context
    for _ in range(3):
        tls.renew()
    write(cert, two)
    tls.renew()  # seen once: its key may still be under way
    write(key, two)
    tls.renew()
    assert tls.context is first
    tls.renew()
    second = tls.context
    assert second is not first
    cert.unlink()
    for _ in range(3):
        tls.renew()
    assert tls.context is second


def test_a_certificate_needs_its_key_in_the_settings() -> None:
    said = refusal(lambda: load_config(None, ["tls_cert_file=/etc/tls.crt"]))
    assert "tls_key_file" in said
    assert Pair.of(load_config(None)) is None


@pytest.mark.parametrize(
    ("ends", "ok", "words"),
    [
        (timedelta(days=90), True, "expires in 90 days"),
        (timedelta(days=10), False, "expires in 10 days"),
        (timedelta(hours=-1), False, "has expired"),
    ],
)
def test_doctor_says_when_the_certificate_expires(
    authority: Authority, tmp_path: Path, ends: timedelta, ok: bool, words: str
) -> None:
    made = authority.issue(begins=timedelta(days=-2), ends=ends)
    made.chmod(0o600)
    found = certificate(tmp_path, made)
    assert (found.ok, words in found.what) == (ok, True), found
    assert "renew it" in found.fix


def test_doctor_names_a_key_that_others_can_read(authority: Authority, tmp_path: Path) -> None:
    made = authority.issue()
    made.chmod(0o644)
    found = certificate(tmp_path, made)
    assert not found.ok and "other users can read" in found.what


def certificate(data: Path, made: Path) -> Finding:
    config = load_config(None, [f"tls_cert_file={made}", f"tls_key_file={made}"])
    findings = examine(data, config, host="127.0.0.1", port=1, polls=1)
    return next(item for item in findings if item.name == "certificate")


def test_the_tls_port_is_bound_beside_the_plain_one_at_the_same_address() -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = int(probe.getsockname()[1])
    environ = {"RAE_BIND_ADDRESS": "127.0.0.1", "RAE_PORT": "0"}
    with ExitStack() as stack:
        bound = [
            stack.enter_context(socket.socket(fileno=fd)).getsockname()
            for fd in sockets.listeners(environ, os.getpid(), port)
        ]
    assert [host for host, _ in bound] == ["127.0.0.1"] * 2
    assert bound[1][1] == port != bound[0][1]
