"""Wait for a condition, with a bound: the one way in which tests wait."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any


def until(
    condition: Callable[[], Any],
    what: str,
    timeout_s: float = 10.0,
    *,
    every_s: float = 0.01,
    sleep: Callable[[float], object] = time.sleep,
) -> Any:
    """Look until the condition holds and return its value; the test fails after `timeout_s`."""
    end = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= end:
            raise AssertionError(f"after {timeout_s:g} s still not: {what}")
        sleep(every_s)
