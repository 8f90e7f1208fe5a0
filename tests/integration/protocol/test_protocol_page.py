"""`docs/protocol.md` says what the code does: its tables, its vectors, its commands."""

from __future__ import annotations

import re
import subprocess
from pathlib import Path

import pytest

PAGE = Path(__file__).parents[3] / "docs" / "protocol.md"
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)


@pytest.mark.parametrize(
    "block", BLOCKS, ids=["register", "session", "later-call", "answer", "envelope"]
)
def test_the_openssl_commands_print_what_the_page_says(block: str) -> None:
    expected = [line.removeprefix("# → ") for line in block.splitlines() if line.startswith("# → ")]
    assert expected
    done = subprocess.run(
        ["bash", "-c", block], capture_output=True, text=True, timeout=30, check=True
    )
    assert done.stdout.splitlines() == expected
