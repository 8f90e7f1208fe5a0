"""A full disk loses nothing that was acknowledged and leaves nothing half dead."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import pytest

REFUSED = {
    "ledger": {"submit": ["ledger_unavailable"], "upload": ["disk_low"]},
    "blobs": {"submit": ["ok"], "upload": ["disk_low"]},
    "redis": {"submit": ["ok"], "upload": ["ok"]},
}


@pytest.mark.parametrize("part", REFUSED)
def test_a_full_disk_under_one_part_loses_nothing(part: str) -> None:
    # A mount namespace of its own: nothing stays mounted. Whoever is not root is it in there.
    own = ["unshare", "--mount", *(["--map-root-user"] if os.geteuid() else [])]
    done = subprocess.run(
        [*own, sys.executable, "-m", "tests.integration.disk_full", part],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    told = json.loads(done.stdout)
    assert told["seen"] == {**REFUSED[part], "read": ["ok"]}
    assert (told["alive"], told["lost"], told["violations"]) == (200, [], [])
    assert told["state"] == "succeeded"
    assert told["same_worker"] == (part == "redis")
