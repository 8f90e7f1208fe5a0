"""The node's allow-list: shipped entries, and programs that no other user can replace (C5)."""

from __future__ import annotations

import subprocess
from pathlib import Path

from rae_node.package import DATA
from rae_node.runners.cli import AllowFolders
from rae_protocol.allowlist import refusal

SHIPPED = AllowFolders([DATA / "allowlist.d"])


def test_a_name_that_begins_with_an_at_sign_is_no_list_of_arguments(tmp_path: Path) -> None:
    (tmp_path / "list").write_text("secret\n")
    (tmp_path / "secret").write_text("the secret")
    for entry in SHIPPED.entries:
        if entry.name in SHIPPED.offered() and refusal(entry, ["@list"]) is None:
            done = subprocess.run(
                [entry.path, "@list"], cwd=tmp_path, stdin=subprocess.DEVNULL, timeout=30,
                capture_output=True, check=False,
            )  # fmt: skip
            assert b"the secret" not in done.stdout + done.stderr
            assert done.returncode != 0 or entry.name == "echo"
