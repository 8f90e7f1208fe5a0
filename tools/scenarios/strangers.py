"""Strangers without a token who hold on to control, beside a mesh that works.

    python -m tools.scenarios.strangers PORT SECONDS

sends, from addresses of their own on loopback: bodies that stay half sent, bodies that come byte by
byte, registrations with a wrong secret as fast as they are answered, and connections that say
nothing. `watch` runs that as a process of its own and measures what a submit and a heartbeat wait
meanwhile, and what control's worker holds.
"""

from __future__ import annotations

import contextlib
import json
import secrets
import socket
import statistics
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import psutil

from rae_protocol import models, signing
from rae_protocol.node_client import NodeClient
from tools.devmesh import DevMesh

SECONDS = 20.0
PAUSE_S = 0.05
# What a submit and a heartbeat may wait, but for one in ten: cores and disk may be busy.
MOST_S = 1.0
# Connections at rest and their buffers; bodies of strangers, which have a limit of their own.
MOST_MIB, MOST_TEMPORARY_MIB = 64.0, 1.0
HALF, SLOW, SILENT, FLOODS = 40, 200, 1500, 4
HALF_LENGTH = 63 * 1024**2
REGISTRATION = 200_000


@dataclass(slots=True)
class Figures:
    """What was measured beside the strangers: seconds, MiB, files."""

    submits: list[float] = field(default_factory=list)
    heartbeats: list[float] = field(default_factory=list)
    memory: list[float] = field(default_factory=list)
    temporary: list[float] = field(default_factory=list)
    files: list[int] = field(default_factory=list)

    def problems(self) -> list[str]:
        """What must not be."""
        found = []
        for name, waits in (("submit", self.submits), ("heartbeat", self.heartbeats)):
            late = ninety(waits)
            if late > MOST_S:
                found.append(f"beside strangers one {name} in ten waits {late:.1f} s or more")
        if self.memory[-1] - self.memory[0] > MOST_MIB:
            grown = f"from {self.memory[0]:.0f} to {self.memory[-1]:.0f} MiB"
            found.append(f"beside strangers memory grew {grown}")
        if max(self.temporary) > MOST_TEMPORARY_MIB:
            found.append(f"strangers hold {max(self.temporary):.0f} MiB of temporary files")
        return found

    def show(self) -> None:
        """Print them."""
        for name, waits in (("submit", self.submits), ("heartbeat", self.heartbeats)):
            most = statistics.median(waits), ninety(waits), max(waits)
            text = ", ".join(f"{value:.3f}" for value in most)
            print(f"{f'beside strangers, {name}: median, 90 %, most':54} {text} s ({len(waits)})")
        print(f"{'memory before, at most':54} {self.memory[0]:.1f} {max(self.memory):.1f} MiB")
        print(f"{'temporary files, at most':54} {max(self.temporary):.1f} MiB")
        print(f"{'descriptors before, at most':54} {self.files[0]} {max(self.files)}")


def ninety(waits: list[float]) -> float:
    """The value that nine of ten do not exceed."""
    return statistics.quantiles(waits, n=10, method="inclusive")[-1]


def rss_mib(pid: int) -> float:
    """Resident memory of a process."""
    return psutil.Process(pid).memory_info().rss / 2**20


def watch(mesh: DevMesh, node: NodeClient, seconds: float = SECONDS) -> Figures:
    """Work beside strangers for a while. Raises RaeError when a submit is refused."""
    figures, pid = Figures(), mesh.pid("worker")
    _look(pid, figures)
    port = mesh.url.rsplit(":", 1)[1]
    with subprocess.Popen(
        [sys.executable, "-m", "tools.scenarios.strangers", port, str(seconds)]
    ) as others:
        try:
            end = time.monotonic() + seconds
            while time.monotonic() < end and mesh.pid("worker") == pid:
                _timed(lambda: mesh.rae.submit([{"kind": "never"}]), figures.submits)
                _timed(lambda: node.heartbeat(models.Heartbeat(node_id="fuzz")),
                       figures.heartbeats)  # fmt: skip
                _look(pid, figures)
                time.sleep(PAUSE_S)
        finally:
            others.kill()
    return figures


def _timed(call: Callable[[], object], waits: list[float]) -> None:
    began = time.monotonic()
    call()
    waits.append(time.monotonic() - began)


def _look(pid: int, figures: Figures) -> None:
    figures.memory.append(rss_mib(pid))
    found = list(Path(f"/proc/{pid}/fd").iterdir())
    size = 0
    for entry in found:
        with contextlib.suppress(OSError):
            if "(deleted)" in str(entry.readlink()):
                size += entry.stat().st_size
    figures.temporary.append(size / 2**20)
    figures.files.append(len(found))


class Strangers:
    """All four kinds, each from its own address, until the time is over."""

    def __init__(self, port: int, seconds: float) -> None:
        self._to, self._end = ("127.0.0.1", port), time.monotonic() + seconds

    def run(self) -> None:
        """Return when the time is over."""
        kinds = [self.half_sent, self.slow, self.silent, *[self.register] * FLOODS]
        threads = [
            threading.Thread(target=kind, args=(f"127.9.0.{number + 1}",), daemon=True)
            for number, kind in enumerate(kinds)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(max(0.0, self._end - time.monotonic()))

    def half_sent(self, address: str) -> None:
        """Nearly all of a large body, and then nothing."""
        head = _head("/tasks/result", HALF_LENGTH + 1, "Authorization: Bearer none")
        self._hold(address, HALF, head + b"\0" * HALF_LENGTH)

    def slow(self, address: str) -> None:
        """A byte of a registration now and then."""
        self._hold(address, SLOW, _registration(b" " * 1000)[:-1000], drip=b" ")

    def silent(self, address: str) -> None:
        """Connections, and no word."""
        self._hold(address, SILENT, b"")

    def register(self, address: str) -> None:
        """One registration after the other."""
        body = json.dumps({"node_id": "ghost", "tags": ["x" * 9] * (REGISTRATION // 13)}).encode()
        while time.monotonic() < self._end:
            with contextlib.suppress(OSError), self._connect(address) as connection:
                connection.sendall(_registration(body))
                connection.recv(1)

    def _hold(self, address: str, most: int, data: bytes, drip: bytes = b"") -> None:
        held: list[socket.socket] = []
        while time.monotonic() < self._end:
            with contextlib.suppress(OSError):
                connection = self._connect(address)
                held.append(connection)
                connection.sendall(data)
            if len(held) > most:
                held.pop(0).close()
            if drip:
                for connection in held:
                    with contextlib.suppress(OSError):
                        connection.send(drip)
            time.sleep(0.002)

    def _connect(self, address: str) -> socket.socket:
        return socket.create_connection(self._to, 5, source_address=(address, 0))


def _head(path: str, length: int, authorization: str) -> bytes:
    return (
        f"POST {path} HTTP/1.1\r\nHost: x\r\n{authorization}\r\n"
        f"Content-Type: application/json\r\nContent-Length: {length}\r\n\r\n"
    ).encode()


def _registration(body: bytes) -> bytes:
    made = signing.signed_fields(
        secrets.token_bytes(16), "ghost", "POST", "/nodes/register", time.time(), body
    )
    authorization = f"Authorization: {signing.REGISTER_SCHEME} {made.header()}"
    return _head("/nodes/register", len(body), authorization) + body


if __name__ == "__main__":
    Strangers(int(sys.argv[1]), float(sys.argv[2])).run()
