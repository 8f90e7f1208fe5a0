"""Allow-lists beside the real kernel."""

from __future__ import annotations

import subprocess

import pytest

from rae_protocol.allowlist import Entry, Refusal, refusal


def test_the_longest_argument_is_what_the_kernel_takes() -> None:
    entry = Entry(path="/bin/true", args=[["x+"]], max_total_args_len=1024 * 1024)
    longest = "x" * (128 * 1024 - 1)
    assert refusal(entry, [longest, longest]) is None
    subprocess.run(["/bin/true", longest, longest], check=True)
    found = refusal(entry, [longest, longest + "x"])
    assert isinstance(found, Refusal) and "has 131072 bytes, and Linux takes" in found.message
    with pytest.raises(OSError, match="Argument list too long"):
        subprocess.run(["/bin/true", longest + "x"], check=False)
