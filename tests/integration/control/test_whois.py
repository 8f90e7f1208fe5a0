"""Who registers as a node must call from that node's machine: tailscaled is asked."""

from __future__ import annotations

import json
import socketserver
import tempfile
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

import pytest

from rae_control.config import ControlConfig
from tests.integration.control.harness import Api, refused


class Tailscaled(socketserver.ThreadingUnixStreamServer):
    """Answers whois as tailscaled does: what it knows of an address, or 404."""

    def __init__(self, path: Path) -> None:
        super().__init__(str(path), _Handler)
        self.machines: dict[str, dict[str, object]] = {}
        self.asked: list[str] = []


class _Handler(BaseHTTPRequestHandler):
    server: Tailscaled

    def do_GET(self) -> None:
        url = urlsplit(self.path)
        peer = parse_qs(url.query)["addr"][0]
        self.server.asked.append(peer)
        known = self.server.machines.get(peer.rpartition(":")[0])
        right = self.headers["Host"] == "local-tailscaled.sock"
        status = 403 if not right or url.path != "/localapi/v0/whois" else 200 if known else 404
        body = json.dumps({"Node": known}).encode() if status == 200 else b"no match for IP:port"
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def address_string(self) -> str:
        return "unix"

    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def tailscaled() -> Iterator[Tailscaled]:
    with tempfile.TemporaryDirectory(prefix="rae-test-") as folder:
        server = Tailscaled(Path(folder) / "tailscaled.sock")
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield server
        server.shutdown()
        thread.join()
        server.server_close()


@pytest.fixture
def config(tailscaled: Tailscaled) -> ControlConfig:
    return ControlConfig(
        tailscale_socket=str(tailscaled.server_address), tailnet_tag="tag:rae-node",
        tailnet_names={"lab.gpu": "bench-1"},
    )  # fmt: skip


def machine(name: str, *tags: str) -> dict[str, object]:
    return {"ID": 1, "Name": f"{name}.tail1234.ts.net.", "Tags": list(tags)}


def test_a_node_registers_from_its_own_machine_alone(api: Api, tailscaled: Tailscaled) -> None:
    here = "127.0.0.1"
    api.enrol("node1")
    tailscaled.machines[here] = machine("node2", "tag:rae-node")
    answer = api.register("node1")
    refused(answer, "wrong_peer")
    assert "'node2'" in answer.json["message"]
    tailscaled.machines[here] = machine("node1", "tag:other")
    refused(api.register("node1"), "wrong_peer")
    assert api.rae("GET", "/nodes/node1", who="eve").json["state"] == "enrolled"
    tailscaled.machines[here] = machine("node1", "tag:other", "tag:rae-node")
    assert api.register("node1").status_code == 200
    assert all(peer.startswith(f"{here}:") for peer in tailscaled.asked)
    api.enrol("lab.gpu")
    tailscaled.machines[here] = machine("bench-1", "tag:rae-node")
    assert api.register("lab.gpu").status_code == 200
    # The session itself is bound by its keys: it goes on whatever tailscaled says.
    tailscaled.machines.clear()
    assert api.node("node1", "POST", "/nodes/heartbeat", {"node_id": "node1"}).status_code == 200


def test_who_is_not_on_the_tailnet_or_has_no_secret_gets_no_further(
    api: Api, tailscaled: Tailscaled
) -> None:
    api.enrol("node1")
    refused(api.register("node1"), "wrong_peer")
    before = len(tailscaled.asked)
    api.secrets["node1"] = "of somebody else"
    refused(api.register("node1"), "not_enrolled")
    assert len(tailscaled.asked) == before


def test_a_tailscaled_that_is_away_is_reported_and_asked_again(
    api: Api, tailscaled: Tailscaled
) -> None:
    api.enrol("node1")
    tailscaled.machines["127.0.0.1"] = machine("node1", "tag:rae-node")
    path = Path(str(tailscaled.server_address))
    path.rename(path.with_suffix(".away"))
    answer = api.register("node1")
    refused(answer, "whois_unavailable")
    assert answer.headers["Retry-After"]
    path.with_suffix(".away").rename(path)
    assert api.register("node1").status_code == 200
