"""rq, Celery and Ray in an environment of their own, their Redis syncing every write, as control's
ledger does; Ray keeps nothing on disk."""

from __future__ import annotations

import json
import subprocess
import tempfile
from pathlib import Path
from typing import Any

from rae_control.queue.dev_redis import find_server
from tools.devmesh import wait_until
from tools.processes import MeshError

NAMES = ("rq Worker", "rq SimpleWorker", "Celery", "Ray")


class Peers:
    """The peers' Python and their numbers, measured once each."""

    def __init__(self, python: Path | None) -> None:
        self._python = python
        self._known: dict[str, dict[str, Any]] = {}

    @property
    def python(self) -> Path:
        """Their Python. Raises MeshError where there is none."""
        if self._python is None:
            raise MeshError("--peers is missing: run make bench without PART")
        return self._python

    def versions(self) -> str:
        """What is compared with."""
        code = "import importlib.metadata as m\n"
        code += "print(', '.join(f'{n} {m.version(n)}' for n in ('rq', 'celery', 'ray')))"
        return subprocess.check_output([self.python, "-c", code], text=True).strip()

    def measure(self, name: str) -> dict[str, Any]:
        """The peer's numbers. Raises MeshError."""
        if name not in self._known:
            self._known[name] = self._run(name)
        return self._known[name]

    def _run(self, name: str) -> dict[str, Any]:
        python = self.python
        with tempfile.TemporaryDirectory(prefix="rae-bench-") as folder:
            socket = Path(folder, "redis.sock")
            redis = subprocess.Popen(
                [find_server(), "--port", "0", "--unixsocket", str(socket), "--dir", folder,
                 "--appendonly", "yes", "--appendfsync", "always", "--save", ""],
                stdout=subprocess.DEVNULL,
            )  # fmt: skip
            try:
                wait_until(socket.exists, 10, "the peers' Redis listens")
                done = subprocess.run(
                    [python, Path(__file__).with_name("peer.py"), name, f"unix://{socket}"],
                    capture_output=True, text=True, timeout=300, check=False,
                )  # fmt: skip
            finally:
                redis.terminate()
                redis.wait(10)
        for line in done.stdout.splitlines():
            if line.startswith("RESULT "):
                found: dict[str, Any] = json.loads(line.removeprefix("RESULT "))
                return found
        raise MeshError(f"{name} gave no result:\n{done.stderr[-1500:]}")
