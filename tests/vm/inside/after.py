"""Runs in the guest: how long from a command's start until processes are gone.

`after.py COMMAND PID…` runs the shell command and prints milliseconds.
"""

from __future__ import annotations

import os
import select
import subprocess
import sys
import time

PATIENCE_S = 60.0


def main() -> None:
    """One measurement."""
    alive = {os.pidfd_open(int(pid)) for pid in sys.argv[2:]}
    began = time.monotonic()
    command = subprocess.Popen(["sh", "-c", sys.argv[1]])
    while alive:
        left = max(0.0, began + PATIENCE_S - time.monotonic())
        gone = select.select(list(alive), [], [], left)[0]
        if not gone:
            sys.exit(f"{len(alive)} processes still run {PATIENCE_S:.0f} s after the command")
        alive -= set(gone)
    print((time.monotonic() - began) * 1000, flush=True)
    command.wait(PATIENCE_S)


main()
