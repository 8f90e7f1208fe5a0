"""The rae-node program as a process."""

from __future__ import annotations

import json
import subprocess
import sys


def test_the_module_runs_like_the_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "rae_node", "probe"], capture_output=True, check=True, timeout=30
    )
    assert json.loads(done.stdout)["runners"][:2] == ["cli", "python"]


def test_a_reader_that_leaves_is_no_error() -> None:
    done = subprocess.run(
        ["/bin/sh", "-c", f'"{sys.executable}" -m rae_node probe | true'],
        capture_output=True, check=False, timeout=30,
    )  # fmt: skip
    assert done.stderr == b""
