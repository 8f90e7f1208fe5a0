"""Every message says what, why and what to do: the node's."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path


def test_a_root_that_cannot_be_written_names_the_folder_and_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    command = [sys.executable, "-m", "rae_node", "check-config", str(tmp_path / "file" / "x")]
    done = subprocess.run(
        command, capture_output=True, text=True, check=False, env=dict(os.environ)
    )
    assert done.returncode == 1
    assert "Not a directory; choose a path" in done.stderr
