"""Control stands random bytes; the long run is `make fuzz`."""

from __future__ import annotations

from tools.scenarios import fuzz


def test_control_stands_two_thousand_random_requests_and_works_beside_strangers() -> None:
    assert fuzz.campaign(2000, seed=1, strangers_s=10) == []
