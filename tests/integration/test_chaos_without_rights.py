"""`make chaos` for a user without rights: its disks and its tasks work in a user namespace, too."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_a_user_without_rights_gets_chaos_with_full_disks() -> None:
    words = ["-m", "tools.scenarios", "chaos", "--rounds", "1", "--faults", "disk"]
    done = subprocess.run(
        [sys.executable, "-m", "tools.guest", sys.executable, *words], cwd=ROOT,
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, (done.stdout + done.stderr)[-3000:]
    assert "chaos: nothing lost, nothing twice" in done.stdout
