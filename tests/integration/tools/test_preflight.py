"""What the Makefile's verbs say to a machine that lacks something, and what root gets installed."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[3]


def test_it_runs_by_itself_and_in_seconds_before_there_is_an_environment() -> None:
    # -S and -E: no package, as a machine without .venv has none.
    bare = [sys.executable, "-S", "-E", "-m", "tools.preflight", "venv"]
    began = time.monotonic()
    done = subprocess.run(bare, cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert time.monotonic() - began < 5


def test_the_makefile_s_verbs_begin_with_their_preflight() -> None:
    for verb in ("demo", "test", "test-vm", "test-all", "bench"):
        told = subprocess.run(
            ["make", "--dry-run", "--always-make", verb, "MAKE=true", "PYTHON=some-python"],
            cwd=ROOT, capture_output=True, text=True, check=True,
        ).stdout  # fmt: skip
        assert told.index(f'"some-python" -m tools.preflight {verb}') < told.index("true ")
