"""How long a terminal was quiet, whatever happens to the clock of its stamps."""

from __future__ import annotations

import pytest
from hypothesis import event, given
from hypothesis import strategies as st

from rae_node.guard.idle import GRAIN_S, LastUse

NOW, UP = 1_700_000_000.0, 5000.0


class Machine:
    """Clocks, and one terminal whose stamp changes as the kernel changes it."""

    def __init__(self, unused_s: float) -> None:
        self.wall, self.monotonic = NOW, UP
        self.used_at = UP - unused_s
        self.stamp = float(int(NOW - unused_s))
        self.rule = LastUse()

    def wait(self, seconds: float) -> None:
        self.wall += seconds
        self.monotonic += seconds

    def jump(self, seconds: float) -> None:
        """The clock is set, or the machine was suspended so long."""
        self.wall += seconds

    def use(self) -> None:
        self.used_at = self.monotonic
        if (int(self.wall) ^ int(self.stamp)) & ~7:
            self.stamp = float(int(self.wall))

    def look(self) -> float:
        return self.rule.look({"tty1": self.stamp}, self.wall, self.monotonic)["tty1"]

    @property
    def quiet(self) -> float:
        """The truth."""
        return self.monotonic - self.used_at


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("wait"), st.floats(0, 20)),
        st.tuples(st.just("jump"), st.one_of(st.floats(-30, 30), st.floats(-4000, 90000))),
        st.tuples(st.just("use"), st.just(0.0)),
        st.tuples(st.just("look"), st.just(0.0)),
    ),
    max_size=40,
)


@given(st.floats(0, 4000), STEPS)
def test_no_jump_of_the_clock_shortens_the_quiet_time(
    unused_s: float, steps: list[tuple[str, float]]
) -> None:
    """One jump between two looks, at most: they are seconds apart."""
    machine, jumped = Machine(unused_s), False
    assert machine.look() <= machine.quiet
    for kind, value in steps:
        if kind == "look" or (kind == "jump" and jumped):
            event("looked after a jump" if jumped else "looked")
            jumped = False
            assert machine.look() <= machine.quiet + 1e-6
        if kind == "wait":
            machine.wait(value)
        elif kind == "jump":
            machine.jump(value)
            jumped = True
        elif kind == "use":
            machine.use()
    assert machine.look() <= machine.quiet + 1e-6


@given(st.floats(0, 4000), st.lists(st.floats(0.5, 15), min_size=1, max_size=30))
def test_without_a_use_and_a_jump_quiet_time_passes(unused_s: float, waits: list[float]) -> None:
    machine = Machine(unused_s)
    machine.look()
    for seconds in waits:
        machine.wait(seconds)
        assert machine.look() >= machine.quiet - 2 * GRAIN_S - 2 * max(waits)


@pytest.mark.parametrize("seconds", [3600.0, -3600.0, 1e9, -1e9, 30.0, -300.0])
def test_a_jump_alone_is_no_use(seconds: float) -> None:
    """NTP, daylight saving time, a suspend of a night."""
    machine = Machine(1000)
    before = machine.look()
    machine.wait(1)
    machine.jump(seconds)
    for _ in range(3):
        machine.wait(1)
        machine.look()
    assert machine.look() == pytest.approx(before + 4)


def test_a_suspend_is_no_quiet_time() -> None:
    machine = Machine(0)
    machine.look()
    machine.wait(100)
    machine.look()
    machine.jump(8 * 3600)
    assert machine.look() <= 100


def test_the_first_look_believes_no_more_than_the_machines_own_time() -> None:
    """A clock that was wrong at boot, and set right since."""
    assert LastUse().look({"tty1": 0.0}, NOW, 42.0) == {"tty1": 42.0}


def test_a_stamp_of_the_future_counts_as_a_use_at_the_first_look_alone() -> None:
    rule = LastUse()
    assert rule.look({"tty1": NOW + 3600}, NOW, UP) == {"tty1": 0.0}
    assert rule.look({"tty1": NOW + 3600}, NOW + 10, UP + 10) == {"tty1": 10.0}


def test_a_new_terminal_was_used_just_now() -> None:
    rule = LastUse()
    rule.look({}, NOW, UP)
    assert rule.look({"pts/0": NOW - 5000}, NOW, UP + 1) == {"pts/0": 0.0}
    rule.look({}, NOW, UP + 2)
    assert rule.look({"pts/0": NOW - 5000}, NOW, UP + 900) == {"pts/0": 0.0}


def test_a_stamp_that_goes_back_is_a_use() -> None:
    """The clock was set back, and then somebody typed."""
    machine = Machine(1000)
    machine.look()
    machine.jump(-7200)
    machine.use()
    machine.wait(3)
    assert machine.look() == 0.0
