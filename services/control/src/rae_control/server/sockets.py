"""Where control listens: sockets that systemd passes, or an address of the tailnet."""

from __future__ import annotations

import ipaddress
import os
import socket
from collections.abc import Mapping, MutableMapping

from rae_control.errors import ConfigError
from rae_protocol.errors import in_words

FIRST_FD = 3
BACKLOG = 4096
_TAILSCALE = (ipaddress.ip_network("100.64.0.0/10"), ipaddress.ip_network("fd7a:115c:a1e0::/48"))
_FIX = "use Tailscale's (`tailscale ip -4`) or a loopback address"


def is_private(host: str) -> bool:
    """Whether only the tailnet or this machine reaches an address. Raises ValueError."""
    address = ipaddress.ip_address(host)
    return address.is_loopback or any(address in network for network in _TAILSCALE)


def listeners(
    environ: MutableMapping[str, str], pid: int, tls_port: int | None = None
) -> list[int]:
    """The listening sockets: those passed to this process, else RAE_PORT at RAE_BIND_ADDRESS.

    `tls_port`: that of the one that speaks TLS; it is among those passed, or bound as well.
    Raises ConfigError when one of them could be reached from elsewhere than the tailnet.
    """
    # Taken out: gunicorn would use them by itself, and tell systemd that all is ready.
    ours = environ.pop("LISTEN_PID", "") == str(pid)
    count = int(environ.pop("LISTEN_FDS", "0")) if ours else 0
    fds = list(range(FIRST_FD, FIRST_FD + count))
    if not fds:
        fds.append(_bound(environ))
        if tls_port is not None:
            fds.append(_bound({**environ, "RAE_PORT": str(tls_port)}))
    ports = set()
    for fd in fds:
        with socket.socket(fileno=os.dup(fd)) as passed:
            inet = passed.family in {socket.AF_INET, socket.AF_INET6}
            host, port = passed.getsockname()[:2] if inet else ("a socket that is not TCP", 0)
        if not inet or not is_private(host):
            raise ConfigError(f"{host} is no address to listen at: {_FIX}, in ListenStream= of"
                              " rae-control.socket or in RAE_BIND_ADDRESS")  # fmt: skip
        ports.add(port)
        os.set_inheritable(fd, True)
    if tls_port is not None and tls_port not in ports:
        raise ConfigError(f"no socket with tls_port {tls_port} was passed for tls_cert_file: add"
                          f" ListenStream=ADDRESS:{tls_port} to rae-control.socket")  # fmt: skip
    return fds


def _bound(environ: Mapping[str, str]) -> int:
    host, port = environ.get("RAE_BIND_ADDRESS", ""), environ.get("RAE_PORT", "8080")
    try:
        private = is_private(host)
    except ValueError as error:
        raise ConfigError(
            f"RAE_BIND_ADDRESS is {host!r}, and no socket was passed; {_FIX}"
        ) from error
    if not private or not (port.isascii() and port.isdigit() and int(port) < 65536):
        raise ConfigError(f"RAE_BIND_ADDRESS={host} RAE_PORT={port} cannot be: {_FIX}, and a port"
                          " from 0 to 65535")  # fmt: skip
    listener = socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET)
    try:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listener.bind((host, int(port)))
        listener.listen(BACKLOG)
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"{host} port {port} cannot be had: {in_words(error)}; see that Tailscale is up"
        ) from error
    return listener.detach()
