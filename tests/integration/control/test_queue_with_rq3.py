"""The adapter's tests once more, in a process of their own, with RQ 3 instead of RQ 2."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

RQ3 = Path(sys.prefix) / "rq3"


def test_the_queue_works_with_rq_3_too() -> None:
    """`make venv` puts RQ 3 beside the environment; without it this test fails, it never skips."""
    environ = {**os.environ, "PYTHONPATH": str(RQ3)}
    version = [sys.executable, "-c", "import rq; print(rq.VERSION)"]
    found = subprocess.run(version, env=environ, capture_output=True, text=True, check=True)
    assert found.stdout.startswith("3."), f"no RQ 3 under {RQ3}; run `make venv` again"
    tests = Path(__file__).with_name("test_queue.py")
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(tests)]
    done = subprocess.run(command, env=environ, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
