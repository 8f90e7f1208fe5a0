"""Inputs from URLs: only from hosts that the owner allows, and given up below a least rate."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import requests
from urllib3.connection import HTTPConnection, HTTPSConnection
from urllib3.connectionpool import HTTPConnectionPool, HTTPSConnectionPool
from urllib3.exceptions import HTTPError
from urllib3.util import parse_url
from urllib3.util.connection import create_connection

from rae_node.config.files import resolve
from rae_node.config.url_hosts import HostRule, host_rule, rules_of
from rae_node.errors import HandBack, TaskFailure, listed
from rae_protocol.abort import Abortable, AbortableAdapter
from rae_protocol.answers import save
from rae_protocol.connect_errors import diagnose
from rae_protocol.session import NAME_A_CA_FILE, PlainSession, ca_problem
from rae_protocol.weburl import host_of, plain_host

LookUp = Callable[[str], list[str]]
_CONNECT_S = 5.0


class Pace:
    """The least rate of a download. Counts from the name look-up on, and only the body's bytes:
    headers and chunks that trickle are no progress.
    """

    def __init__(self, name: str, least_bytes_s: float, window_s: float, now: float) -> None:
        self._name, self._least, self._window_s = name, least_bytes_s, window_s
        self._began, self._before, self._size = now, 0, 0

    def came(self, size: int) -> None:
        """More of the body."""
        self._size += size

    def check(self, now: float) -> None:
        """Raises TaskFailure E_INPUT when a window has passed and too little came in it."""
        spent, came = now - self._began, self._size - self._before
        if spent < self._window_s:
            return
        if came < self._least * spent:
            raise TaskFailure(
                "E_INPUT",
                f"Input '{self._name}' comes too slowly: {came} bytes in {spent:.0f} s, and the "
                f"node waits for no less than {self._least:g} a second; upload the input instead",
            )
        self._began, self._before = now, self._size


def fetch_url(
    name: str, url: str, target: Path, allowed_hosts: list[str], max_bytes: int, timeout_s: float,
    came: Callable[[int], None], look_up: LookUp = resolve,
) -> None:  # fmt: skip
    """Download an input from a host that the owner allows; redirects are not followed.

    `came` is called with the size of each piece. Raises TaskFailure E_INPUT or E_DENY, HandBack
    when the disk is the trouble.
    """
    gate = _Gate(name, allowed_hosts, look_up)
    try:
        host = host_of(url)
        with PlainSession(partial(_GateAdapter, gate)) as session:
            request = session.prepare_request(requests.Request("GET", url))
            # The parser that connects has the last word, and the gate at each connection.
            gate.rules(plain_host(parse_url(str(request.url)).host or ""))
            problem = ca_problem(session.verify) if isinstance(session.verify, str) else ""
            if problem and url.startswith("https:"):
                raise HandBack("infrastructure", f"Input '{name}': {problem}. {NAME_A_CA_FILE}")
            # An archive arrives packed, with its own hash.
            response = session.send(
                request, timeout=(_CONNECT_S, timeout_s), stream=True, allow_redirects=False
            )
            with response:
                if response.status_code != requests.codes.ok:
                    status = response.status_code
                    raise TaskFailure("E_INPUT", f"Input '{name}': {host} answered HTTP {status}")
                save(_pieces(response, came), target, max_bytes)
    except requests.RequestException as error:
        why = f"{host} {diagnose(error).what}; check the URL, or upload the input"
        raise TaskFailure("E_INPUT", f"Input '{name}': {why}") from error
    except ValueError as error:
        raise TaskFailure("E_INPUT", f"Input '{name}' from its URL: {error}") from error
    except OSError as error:
        raise HandBack("infrastructure", f"Input '{name}' cannot be stored: {error}") from error


@dataclass(frozen=True, slots=True)
class _Gate:
    """Connects an input's download, to addresses that the owner's list allows and to no other."""

    name: str
    allowed: list[str]
    look_up: LookUp

    def rules(self, host: str) -> list[HostRule]:
        """What allows a host. Raises TaskFailure E_DENY when nothing does."""
        found = rules_of(host, self.allowed)
        if not found:
            hosts = {rule.host for rule in map(host_rule, self.allowed)}
            raise TaskFailure(
                "E_DENY",
                f"Input '{self.name}': this node fetches no URL of {host or 'no host'}; "
                f"allowed by its input_url_hosts: {listed(hosts)}",
            )
        return found

    def connect(self, host: str, port: int, timeout_s: Any, socket_options: Any) -> socket.socket:
        """A connection to the very address that was looked at. Raises TaskFailure, OSError."""
        rules, problem = self.rules(plain_host(host)), None
        addresses = self.look_up(host)
        for address in addresses:
            if not any(rule.allows(address) for rule in rules):
                continue
            try:
                made = create_connection((address, port), timeout_s, None, socket_options)
            except OSError as error:
                problem = error
                continue
            own = made.getsockname()[0] == address
            if any(rule.allows(address, own) for rule in rules):
                return made
            made.close()
        if problem is not None:
            raise problem
        # Not the address: what names mean in the owner's network is nothing for strangers.
        raise TaskFailure(
            "E_DENY",
            f"Input '{self.name}': {host} has no address that this node's input_url_hosts allow; "
            f"by name alone a host must be on the Internet, else its owner writes {host}=NETWORK",
        )


class _GateAdapter(AbortableAdapter):
    def __init__(self, gate: _Gate) -> None:
        self._gate = gate
        super().__init__()

    def init_poolmanager(self, *args: Any, **options: Any) -> None:
        super().init_poolmanager(*args, **options)
        self.poolmanager.pool_classes_by_scheme = {
            "http": partial(_HttpPool, gate=self._gate),
            "https": partial(_HttpsPool, gate=self._gate),
        }


class _Gated:
    """Beside a connection class of urllib3: only how it connects; names stay what they are."""

    host: str
    port: int
    timeout: Any
    socket_options: Any

    def __init__(self, *args: Any, gate: _Gate, **options: Any) -> None:
        super().__init__(*args, **options)
        self._gate = gate

    def _new_conn(self) -> socket.socket:
        return self._gate.connect(self.host, self.port, self.timeout, self.socket_options)


class _Http(Abortable, _Gated, HTTPConnection):
    pass


class _Https(Abortable, _Gated, HTTPSConnection):
    pass


class _HttpPool(HTTPConnectionPool):
    ConnectionCls = _Http


class _HttpsPool(HTTPSConnectionPool):
    ConnectionCls = _Https


def _pieces(response: requests.Response, came: Callable[[int], None]) -> Iterator[bytes]:
    """A body as it comes, however little that is. Raises ValueError when it ends early."""
    try:
        while piece := response.raw.read1(64 * 1024, decode_content=False):
            came(len(piece))
            yield piece
    except (HTTPError, OSError) as error:
        raise ValueError("the stream broke off") from error
