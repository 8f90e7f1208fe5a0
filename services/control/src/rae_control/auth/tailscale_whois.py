"""Which machine of the tailnet is calling: asked of tailscaled on this host, over its socket."""

from __future__ import annotations

import json
import socket
from collections.abc import Mapping
from http.client import HTTPConnection, HTTPException
from typing import Any
from urllib.parse import quote

import gevent

from rae_control.config import ControlConfig
from rae_protocol.errors import RaeError

WAIT_S = 3.0
MAX_BYTES = 1024 * 1024
_HOST = "local-tailscaled.sock"  # tailscaled answers to this name alone


class _Local(HTTPConnection):
    def __init__(self, path: str) -> None:
        super().__init__(_HOST, timeout=WAIT_S)
        self._path = path

    def connect(self) -> None:
        self.sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self.sock.settimeout(WAIT_S)
        self.sock.connect(self._path)


def check_peer(config: ControlConfig, node_id: str, address: str | None, port: str | None) -> None:
    """See that a node registers from the machine that has its name, if we are to look.

    Raises RaeError `wrong_peer`, `whois_unavailable`.
    """
    if config.tailscale_socket is None:
        return
    host = f"[{address}]" if address and ":" in address else str(address)
    machine = _machine(config.tailscale_socket, f"{host}:{port}")
    name = str(machine.get("Name") or "").partition(".")[0].lower()
    wanted = config.tailnet_names.get(node_id, node_id).lower()
    if not name or name != wanted:
        seen = f"the tailnet's {name!r}" if name else "no machine of the tailnet"
        raise RaeError("wrong_peer", f"{host} is {seen}, and {node_id} belongs to {wanted!r}")
    if config.tailnet_tag and config.tailnet_tag not in (machine.get("Tags") or ()):
        raise RaeError("wrong_peer", f"{name} does not carry {config.tailnet_tag}")


def _machine(path: str, peer: str) -> Mapping[str, Any]:
    connection = _Local(path)
    try:
        with gevent.Timeout(WAIT_S, TimeoutError("it does not answer")):
            connection.request("GET", f"/localapi/v0/whois?addr={quote(peer)}")
            answer = connection.getresponse()
            body = answer.read(MAX_BYTES)
        if answer.status == 404:
            return {}
        if answer.status == 200:
            found = json.loads(body)["Node"]
            if isinstance(found, dict):
                return found
        raise ValueError(f"it said {answer.status}")
    except (OSError, HTTPException, ValueError, KeyError, TypeError) as error:
        said = getattr(error, "strerror", None) or str(error) or type(error).__name__
        raise RaeError("whois_unavailable", f"{path}: {said}", retry_after_s=10) from error
    finally:
        connection.close()
