"""A task that writes down when it lives: CLOCK_BOOTTIME, one line every 20 ms.

The first attempt still runs; a later one ends well after a second.
"""

from __future__ import annotations

import os
import time
from typing import Any

RHYTHM_S = 0.02


def run(ctx: Any) -> int:
    """Return the number of the attempt."""
    attempt = int(os.environ["RAE_ATTEMPT"])
    end = time.monotonic() + (3600 if attempt == 1 else 1)
    with (ctx.output / "stamps").open("w", encoding="ascii", buffering=1) as stamps:
        while time.monotonic() < end:
            stamps.write(f"{time.clock_gettime(time.CLOCK_BOOTTIME):.4f}\n")
            time.sleep(RHYTHM_S)
    return attempt
