"""Inputs from URLs: only from hosts that the owner allows, and never in the owner's way."""

from __future__ import annotations

import gzip
import hashlib
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

import pytest

from rae_node.config.layout import Layout, socket_path
from rae_node.owner.socket import ask
from tests.integration.node.harness import MakeRig
from tests.servers import served
from tests.until import until

CONTENT = b"bytes from far away\n" * 1000
PACKED = gzip.compress(CONTENT)


class Files(BaseHTTPRequestHandler):
    """`/file` answers at once, `/drip` goes on until the test ends, `/moved` leads elsewhere."""

    def log_message(self, *_: Any) -> None: ...

    def do_GET(self) -> None:
        self.send_response(302 if self.path == "/moved" else 200)
        self.send_header("Location", "http://127.0.0.1:9/")
        if self.path == "/packed.tar.gz":  # as servers do that take the name for a coding
            self.send_header("Content-Encoding", "gzip")
        self.end_headers()
        if self.path == "/file":
            self.wfile.write(CONTENT)
        if self.path == "/packed.tar.gz":
            self.server.accepted = self.headers["Accept-Encoding"]  # type: ignore[attr-defined]
            self.wfile.write(PACKED)
        while self.path == "/drip" and not self.server.free.is_set():  # type: ignore[attr-defined]
            try:
                self.wfile.write(b"x")  # far less than a piece
            except OSError:
                return
            self.server.dripping.set()  # type: ignore[attr-defined]
            self.server.free.wait(0.02)  # type: ignore[attr-defined]


@pytest.fixture
def files() -> Iterator[ThreadingHTTPServer]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), Files)
    server.dripping = threading.Event()  # type: ignore[attr-defined]
    with served(server):
        yield server


def task(server: ThreadingHTTPServer, path: str, sha256: str | None = None) -> dict[str, Any]:
    source = {"url": f"http://127.0.0.1:{server.server_port}{path}"}
    if sha256:
        source["sha256"] = sha256
    return {"params": {"command": "wc", "args": ["-c", "f"]}, "inputs": {"f": source}}


def test_a_url_of_an_allowed_host_becomes_an_input(
    make_rig: MakeRig, files: ThreadingHTTPServer
) -> None:
    rig = make_rig(input_url_hosts=["127.0.0.1"])
    result, _ = rig.run("cli", **task(files, "/file", hashlib.sha256(CONTENT).hexdigest()))
    assert result.result["stdout"].split()[0] == str(len(CONTENT))


def test_an_archive_arrives_packed_whatever_coding_its_server_names(
    make_rig: MakeRig, files: ThreadingHTTPServer
) -> None:
    rig = make_rig(input_url_hosts=["127.0.0.1"])
    wanted = hashlib.sha256(PACKED).hexdigest()
    result, _ = rig.run("cli", **task(files, "/packed.tar.gz", wanted))
    assert result.error is None, result.error
    assert result.result["stdout"].split()[0] == str(len(PACKED))
    assert files.accepted == "identity"  # type: ignore[attr-defined]


def test_other_hosts_are_denied_by_default(make_rig: MakeRig, files: ThreadingHTTPServer) -> None:
    result, _ = make_rig().run("cli", **task(files, "/file"))
    assert result.error is not None
    assert result.error.code == "E_DENY"
    assert "input_url_hosts" in result.error.message


@pytest.mark.parametrize("path", ["/moved", "/file"])
def test_a_redirect_or_other_bytes_than_promised_fail_the_input(
    make_rig: MakeRig, files: ThreadingHTTPServer, path: str
) -> None:
    rig = make_rig(input_url_hosts=["127.0.0.1"])
    result, _ = rig.run("cli", **task(files, path, "0" * 64))
    assert result.error is not None
    assert result.error.code == "E_INPUT"


def test_an_owner_who_returns_breaks_off_a_download(
    make_rig: MakeRig, files: ThreadingHTTPServer, layout: Layout
) -> None:
    rig = make_rig(input_url_hosts=["127.0.0.1"])
    rig.control.give("cli", **task(files, "/drip"))
    assert files.dripping.wait(10)  # type: ignore[attr-defined]
    ask(socket_path(layout.root), {"verb": "pause"})
    assert until(lambda: rig.control.of("yield"), "the hand-back")[0][1] == "paused"
    until(lambda: not list(layout.workdir.iterdir()), "the workspace is wiped")
