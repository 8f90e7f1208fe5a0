"""Control stands random bytes; the long run is `make fuzz`."""

from __future__ import annotations

from tools import fuzz


def test_control_stands_two_thousand_random_requests_and_works_beside_strangers() -> None:
    assert fuzz.run(2000, seed=1, strangers_s=10) == []
