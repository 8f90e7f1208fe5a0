"""How long a regular expression can take at worst, computed from its structure. Pure.

Python's matcher tries one way after the other and holds the whole process up meanwhile: a pattern
such as `(a+)+b` and forty letters would stop an agent, its guard included. So patterns are measured
when they are read, and what is tried against them has a longest length.
"""

from __future__ import annotations

import math
import sys
from typing import Any

if sys.version_info >= (3, 11):
    from re import _parser as sre_parse
else:
    import sre_parse

MOST_WAYS = 5e7  # measured: at most half a second


def is_costly(pattern: str, length: int) -> bool:
    """Whether a text of that length could take too long. Raises re.error."""
    return _ways(sre_parse.parse(pattern), length) > math.log10(MOST_WAYS)


def _ways(items: Any, length: int) -> float:
    """log10 of an upper bound for the number of ways to read a text."""
    total = 0.0
    for op, value in items:
        name = str(op)
        if name.endswith("_REPEAT"):
            least, most, inner = value
            rounds = min(int(most), length)
            choices = max(1, rounds - int(least) + 1)
            total += math.log10(choices) + rounds * _ways(inner, length)
        elif name == "BRANCH":
            total += _any_of(value[1], length)
        elif name == "GROUPREF_EXISTS":
            total += _any_of([part for part in value[1:] if part], length)
        elif name in {"SUBPATTERN", "ASSERT", "ASSERT_NOT"}:
            total += _ways(value[-1], length)
        elif name == "ATOMIC_GROUP":
            total += _ways(value, length)
    return total


def _any_of(branches: Any, length: int) -> float:
    return math.log10(len(branches)) + max(_ways(branch, length) for branch in branches)
