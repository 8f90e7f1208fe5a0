"""What strangers get: per address, in all, and again after a while; and the time of a body."""

from __future__ import annotations

from rae_control.core.gate import (
    ADDRESSES,
    BURST,
    OF_A_CALLER,
    OF_ALL,
    OF_ONE,
    RATE,
    Budget,
    Gate,
    Visit,
)
from rae_control.server import gunicorn_worker


class Hand:
    """A clock that is moved by hand, and the connections that were ended."""

    def __init__(self, most: int = 20_000) -> None:
        self.time = 0.0
        self.ended: list[int] = []
        self.gate = Gate(lambda: self.time, most)

    def enter(self, address: str, number: int = 0) -> Visit:
        visit = self.gate.enter(address, lambda: self.ended.append(number))
        assert isinstance(visit, Visit)
        return visit


def used_up(hand: Hand, address: str) -> None:
    for _ in range(int(BURST)):
        assert not hand.gate.take(address)


def test_an_address_that_shows_nothing_waits_and_others_do_not() -> None:
    hand = Hand()
    used_up(hand, "a")
    wait = hand.enter("a").ask()
    assert 0 < wait <= 1 / RATE
    assert hand.enter("b").ask() == 0
    hand.time += wait
    assert hand.enter("a").ask() == 0
    assert hand.enter("a").ask() > 0


def test_a_connection_costs_an_address_nothing_and_neither_does_a_token() -> None:
    hand = Hand()
    for _ in range(3 * int(BURST)):
        visit = hand.enter("a")
        visit.recognise("caller")
        hand.gate.leave(visit)
    used_up(hand, "a")


def test_registrations_count_apart_and_those_of_nodes_do_not() -> None:
    hand = Hand()
    used_up(hand, "a")
    for number in range(3 * int(BURST)):
        visit = hand.enter("a")
        assert visit.ask(registers=True) == 0
        visit.registered(f"node {number}")
    for _ in range(int(BURST)):
        assert hand.enter("a").ask(registers=True) == 0
    assert hand.enter("a").ask(registers=True) > 0


def test_the_oldest_stranger_makes_way_and_who_is_known_stays() -> None:
    hand = Hand()
    hand.enter("a", 0).recognise("caller")
    for number in range(1, OF_ONE + 3):
        hand.enter("a", number)
    assert hand.ended == [1, 2]


def test_of_too_many_connections_of_one_caller_the_oldest_ends_and_others_stay() -> None:
    hand = Hand()
    hand.enter("b", 0).recognise("another")
    visits = []
    for number in range(1, OF_A_CALLER + 4):
        visits.append(hand.enter(f"a{number % 90}", number))
        visits[-1].recognise("caller")
    assert hand.ended == [1, 2, 3]
    for visit in visits:
        hand.gate.leave(visit)
    hand.enter("a", 9999).recognise("caller")
    assert hand.ended == [1, 2, 3]


def test_all_strangers_together_have_a_limit() -> None:
    hand = Hand()
    for number in range(OF_ALL + 5):
        hand.enter(f"a{number}", number)
    assert hand.ended == [0, 1, 2, 3, 4]


def test_where_few_connections_may_be_strangers_and_one_caller_leave_half_to_others() -> None:
    hand = Hand(16)
    for number in range(5):
        hand.enter("a", number)
    assert hand.ended == [0]
    for number in range(5, 10):
        hand.enter(f"b{number}", number)
    assert hand.ended == [0, 1]
    for number in range(20, 29):
        hand.enter("c", number).recognise("caller")
    assert hand.ended[-1] == 20


def test_the_table_of_addresses_has_a_limit() -> None:
    hand = Hand()
    used_up(hand, "a")
    for number in range(ADDRESSES - 1):
        hand.gate.take(f"b{number}")
    assert hand.gate.take("a") > 0
    for number in range(ADDRESSES):
        hand.gate.take(f"c{number}")
    assert hand.gate.take("a") == 0


def test_a_budget_is_for_each_and_for_all_and_forgets_who_holds_nothing() -> None:
    budget = Budget(each=10, total=15)
    assert budget.take("a", 10)
    assert not budget.take("a", 1)
    assert not budget.take("b", 6)
    assert budget.take("b", 5)
    budget.give("a", 10)
    budget.give("b", 5)
    assert budget == Budget(each=10, total=15)


def test_a_small_body_and_any_of_a_stranger_has_ten_seconds() -> None:
    assert gunicorn_worker.time_for(1000, 1000, known=True) == 10
    assert gunicorn_worker.time_for(200_000, 65_536, known=False) == 10


def test_a_large_body_must_come_at_a_least_rate_and_within_an_hour() -> None:
    mib = 1024**2
    assert gunicorn_worker.time_for(mib, 65_536, known=True) == 30 + 64
    assert gunicorn_worker.time_for(mib, 2 * 65_536, known=True) == 30 + 128
    assert gunicorn_worker.time_for(64 * mib, 60 * mib, known=True) == 3600
