"""A full disk loses nothing that was acknowledged and leaves nothing half dead."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

REFUSED = {
    "ledger": {"submit": ["ledger_unavailable"], "upload": ["disk_low"]},
    "blobs": {"submit": ["ok"], "upload": ["disk_low"]},
    "redis": {"submit": ["ok"], "upload": ["ok"]},
}


def in_own_namespace(part: str) -> Any:
    # A mount namespace of its own: nothing stays mounted. Whoever is not root is it in there.
    own = ["unshare", "--mount", *(["--map-root-user"] if os.geteuid() else [])]
    done = subprocess.run(
        [*own, sys.executable, "-m", "tests.integration.disk_full", part],
        capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    return json.loads(done.stdout)


@pytest.mark.parametrize("part", REFUSED)
def test_a_full_disk_under_one_part_loses_nothing(part: str) -> None:
    told = in_own_namespace(part)
    assert told["seen"] == {**REFUSED[part], "read": ["ok"]}
    assert (told["alive"], told["lost"], told["violations"]) == (200, [], [])
    assert told["state"] == "succeeded"
    assert told["same_worker"] == (part == "redis")


def test_a_restore_on_a_nearly_full_disk_is_whole_or_not_at_all() -> None:
    told = in_own_namespace("restore")
    assert told["done"] > 0
    assert not told["old"], "a restore without a new incarnation"
    assert set(told["told"]) <= {"DiskFull", "OSError"}
    assert "DiskFull" in told["told"]
