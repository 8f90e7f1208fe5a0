"""No nonce counts twice, whatever the clock does, and a flood takes a bounded amount of memory."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from rae_control.core.nonces import NonceCache

NOW = 1_767_225_600


def test_a_nonce_counts_once_for_each_key_id() -> None:
    cache = NonceCache()
    assert cache.add("n1", NOW, "a", NOW)
    assert not cache.add("n1", NOW, "a", NOW + 60)
    assert cache.add("n2", NOW, "a", NOW)


def test_a_clock_that_is_set_back_ten_minutes_brings_no_nonce_round_again() -> None:
    cache = NonceCache(keep_s=600)
    assert cache.add("n1", NOW, "a", NOW)
    assert cache.add("n1", NOW + 590, "b", NOW + 590)
    assert cache.knows("n1", NOW, NOW)
    assert not cache.add("n1", NOW, "a", NOW)


def test_what_is_older_than_that_takes_no_memory() -> None:
    cache = NonceCache(keep_s=600)
    for second in range(2000):
        cache.add("n1", NOW + second, "a", NOW + second)
    assert len(cache) <= 602


def test_a_flood_takes_a_bounded_amount_and_only_its_sender_may_not_be_late() -> None:
    cache = NonceCache(most=100)
    for number in range(1000):
        cache.add("n1", NOW + number // 50, f"{number}", NOW + number // 50)
    assert len(cache) <= 100
    now = NOW + 19
    cache.add("n2", now, "a", now)
    assert not cache.knows(
        "n1", NOW, now
    )  # a copy of these could not be distinguished from a new one
    assert cache.knows("n1", now, now)
    assert cache.knows("n2", NOW, now)


def test_a_flood_from_a_wrong_year_does_not_shut_its_sender_out_of_the_right_one() -> None:
    cache = NonceCache(most=100)
    year = 365 * 86400
    for number in range(300):
        cache.add("n1", NOW + year + number // 90, f"{number}", NOW + year + number // 90)
    for number in range(50):
        assert cache.knows("n1", NOW, NOW)
        assert cache.add("n1", NOW, f"{number}", NOW)


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 9)), max_size=200), st.integers(1, 30))
def test_nothing_is_taken_twice_however_little_is_kept(
    calls: list[tuple[int, int]], most: int
) -> None:
    cache, taken = NonceCache(keep_s=600, most=most), set[tuple[int, int]]()
    for stamp, nonce in calls:
        if cache.knows("n1", NOW + stamp, NOW) and cache.add("n1", NOW + stamp, str(nonce), NOW):
            assert (stamp, nonce) not in taken
            taken.add((stamp, nonce))
