"""No single clock decides what cannot be undone."""

from __future__ import annotations

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from rae_control.core.steady import Kept, SteadyClock

HOUR, DAY = 3600.0, 86400.0


@dataclass
class Machine:
    """A true time, and the two clocks that show it: the wall clock may be off."""

    true: float = 1_000_000_000.0
    booted: float = 1_000_000_000.0 - 500
    off: float = 0.0

    @property
    def wall(self) -> float:
        return self.true + self.off

    @property
    def boot(self) -> float:
        return self.true - self.booted

    def clock(self, kept: Kept | None = None) -> SteadyClock:
        return SteadyClock(self.wall, self.boot, kept, HOUR, f"boot at {self.booted}")

    def run(self, clock: SteadyClock, seconds: float) -> list[float]:
        """Look once a second; the steps that were seen."""
        steps = []
        for _ in range(int(seconds)):
            self.true += 1
            steps.append(clock.look(self.wall, self.boot))
        return [step for step in steps if step]


def test_ninety_days_ahead_for_a_moment_makes_nothing_earlier() -> None:
    machine = Machine()
    clock = machine.clock()
    machine.off = 91 * DAY
    assert machine.run(clock, 6) == []
    assert clock.earliest(machine.wall, machine.boot) == machine.true
    assert clock.doubt_s == 91 * DAY
    machine.off = 0.0
    machine.run(clock, 3)
    assert clock.earliest(machine.wall, machine.boot) == machine.true
    assert clock.doubt_s == 0.0


def test_a_clock_that_was_set_for_good_is_believed_in_time_and_says_by_how_much() -> None:
    machine = Machine()
    clock = machine.clock()
    machine.off = 7 * DAY
    assert machine.run(clock, HOUR + 2) == [7 * DAY]
    assert clock.earliest(machine.wall, machine.boot) == machine.wall
    assert clock.doubt_s == 0.0


def test_a_clock_that_goes_on_jumping_is_never_believed() -> None:
    machine = Machine()
    clock = machine.clock()
    for days in range(1, 50):
        machine.off = days * DAY
        machine.run(clock, HOUR / 2)
    assert clock.earliest(machine.wall, machine.boot) == machine.true


def test_a_step_back_is_followed_at_once_and_so_is_the_way_home() -> None:
    machine = Machine()
    clock = machine.clock()
    machine.off = -HOUR
    assert machine.run(clock, 5) == [-HOUR]
    assert clock.latest(machine.wall, machine.boot) == machine.true
    machine.off = 0.0
    assert machine.run(clock, 5) == [HOUR]


def test_slewing_is_no_step() -> None:
    machine = Machine()
    clock = machine.clock()
    for _ in range(1000):
        machine.off += 0.4
        assert machine.run(clock, 1) == []
    assert clock.earliest(machine.wall, machine.boot) == machine.wall


def test_a_restart_or_a_reboot_in_a_wrong_hour_changes_nothing() -> None:
    machine = Machine()
    clock = machine.clock()
    machine.off = 91 * DAY
    machine.run(clock, 5)
    again = machine.clock(clock.keep(machine.boot))
    assert machine.run(again, 5) == []
    assert again.earliest(machine.wall, machine.boot) == machine.true
    kept = again.keep(machine.boot)
    machine.booted = machine.true + 30
    machine.true += 31
    rebooted = machine.clock(kept)
    machine.run(rebooted, 5)
    late = machine.true - rebooted.earliest(machine.wall, machine.boot)
    assert 0 <= late <= 31


def test_after_days_off_the_wall_clock_is_believed_in_ten_minutes() -> None:
    machine = Machine()
    kept = machine.clock().keep(machine.boot)
    machine.true += 3 * DAY
    machine.booted = machine.true - 20
    clock = machine.clock(kept)
    machine.run(clock, 60)
    assert clock.doubt_s > 2.9 * DAY
    machine.run(clock, 560)
    assert clock.doubt_s == 0.0 and clock.settles_s == HOUR
    assert clock.earliest(machine.wall, machine.boot) == machine.wall


@given(
    st.lists(
        st.tuples(st.integers(1, 1800), st.integers(-(10**6), 10**6)),
        max_size=20,
        unique_by=lambda step: step[1],
    )
)
def test_what_is_earliest_is_never_late_and_what_is_latest_never_early_while_no_step_lasts(
    steps: list[tuple[int, int]],
) -> None:
    machine = Machine()
    clock = machine.clock()
    for seconds, off in steps:
        machine.off = 100.0 * off
        clock.look(machine.wall, machine.boot)
        machine.true += seconds
        clock.look(machine.wall, machine.boot)
        assert clock.earliest(machine.wall, machine.boot) <= machine.true
        assert clock.latest(machine.wall, machine.boot) >= machine.true


def test_pauses_keep_their_rest_whatever_is_set() -> None:
    machine = Machine()
    clock = machine.clock()
    end = clock.earliest(machine.wall, machine.boot) + 300
    true_end = machine.true + 300
    for off in (HOUR, -HOUR, 5 * DAY, 0.0, -2 * DAY):
        machine.off = off
        end += sum(machine.run(clock, 20))
        left = end - clock.earliest(machine.wall, machine.boot)
        assert abs(left - (true_end - machine.true)) < 0.01
