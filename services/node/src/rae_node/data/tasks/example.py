"""The smallest task: greets, waits if asked to, and leaves a file."""

from __future__ import annotations

import time
from typing import Any


def run(ctx: Any, name: str = "world", seconds: float = 0.0) -> dict[str, str]:
    """Greet `name`, taking `seconds` over it. Leaves output/greeting.txt."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        ctx.progress(100 * (1 - left / seconds), f"{left:.1f} s left")
        time.sleep(min(left, 0.5))
    greeting = f"Hello, {name}!"
    (ctx.output / "greeting.txt").write_text(greeting + "\n", encoding="utf-8")
    return {"greeting": greeting}
