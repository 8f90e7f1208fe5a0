"""Runs in the guest: what a file gets, also after its name is gone, and when the machine slept.

`follow.py FILE` prints each line of the file, and `slept FROM TO` in seconds of CLOCK_BOOTTIME when
that clock ran ahead of CLOCK_MONOTONIC: TO is when programs ran again. It runs before all others,
until its input ends.
"""

from __future__ import annotations

import os
import select
import sys
import time
from pathlib import Path

RHYTHM_S = 0.005


def main() -> None:
    """One file."""
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(50))
    before = time.clock_gettime(time.CLOCK_BOOTTIME), time.monotonic()
    with Path(sys.argv[1]).open(encoding="ascii") as lines:
        print("ready", flush=True)
        ended = False
        while not ended:
            ended = bool(select.select([sys.stdin], [], [], RHYTHM_S)[0])
            now = time.clock_gettime(time.CLOCK_BOOTTIME), time.monotonic()
            if (now[0] - before[0]) - (now[1] - before[1]) > 1:
                print("slept", f"{before[0]:.4f}", f"{now[0]:.4f}", flush=True)
            before = now
            if text := lines.read():
                print(text, end="", flush=True)


main()
