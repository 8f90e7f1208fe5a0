"""Control behind a TLS front with a certificate of a private CA: agent, raectl and messages."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from rae_protocol.session import CA_VARIABLES
from tests.certificates import Authority, tls_front
from tests.harness import MakeMesh
from tests.messages import faults
from tests.until import until
from tools.devmesh import DevMesh


def raectl(mesh: DevMesh, url: str, *words: str, **environment: str) -> tuple[int, str]:
    """Exit code, and what came on both outputs."""
    clean = {k: v for k, v in os.environ.items() if k not in CA_VARIABLES and "RAE_" not in k}
    known = {"RAE_URL": url, "RAE_TOKEN": mesh.credentials()["admin_token"]}
    done = subprocess.run(
        [sys.executable, "-m", "rae_control.cli.raectl", *words],
        env={**clean, **known, **environment}, capture_output=True, text=True, check=False,
        timeout=60,
    )  # fmt: skip
    return done.returncode, done.stdout + done.stderr


def test_a_node_and_raectl_work_over_tls_of_a_private_ca(
    make_mesh: MakeMesh, tmp_path: Path
) -> None:
    mesh, authority = make_mesh(), Authority(tmp_path / "ca")
    port, trust = int(mesh.url.rpartition(":")[2]), str(authority.file)
    with tls_front(authority.issue(), port) as front:
        mesh.add_node("n1", {"rae_endpoint": front.url, "ca_file": trust})
        mesh.wait_node("n1", "online")
        submit = ("submit", "--wait", "--", "echo", "hello")
        code, said = raectl(mesh, front.url, "--ca-file", trust, *submit)
        assert (code, "succeeded" in said) == (0, True), said
        assert raectl(mesh, front.url, "nodes", "list", RAE_CA_FILE=trust)[0] == 0
        assert raectl(mesh, front.url, "nodes", "list", SSL_CERT_FILE=trust)[0] == 0
        assert front.admitted >= 4


@pytest.mark.parametrize("words", [("nodes", "list"), ("submit", "--", "true")])
def test_raectl_names_a_certificate_that_is_not_trusted(
    control: DevMesh, tmp_path: Path, words: tuple[str, ...]
) -> None:
    authority = Authority(tmp_path / "ca")
    port = int(control.url.rpartition(":")[2])
    with tls_front(authority.issue(), port) as front:
        code, said = raectl(control, front.url, *words)
        gone = raectl(control, front.url, "--ca-file", str(tmp_path / "gone.pem"), *words)
    assert (code, "CA that is not trusted here" in said, "--ca-file" in said) == (3, True, True)
    assert faults(said) == []
    assert (gone[0], "gone.pem cannot be read" in gone[1]) == (3, True)


def test_an_agent_logs_and_tells_its_owner_which_certificate_problem_there_is(
    make_mesh: MakeMesh, tmp_path: Path
) -> None:
    mesh, authority = make_mesh(), Authority(tmp_path / "ca")
    port = int(mesh.url.rpartition(":")[2])
    with tls_front(authority.issue("elsewhere.example"), port) as front:
        settings = {"rae_endpoint": front.url, "ca_file": str(authority.file)}
        node = mesh.add_node("n1", settings)

        def logged() -> bool:
            text = node.log.read_text(encoding="utf-8")
            return '"reason": "certificate"' in text or '"reason":"certificate"' in text

        until(logged, "the agent logs the certificate problem", 20)
        assert "another host name" in node.owner("why")
