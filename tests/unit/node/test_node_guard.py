"""The guard: unknown means present, limits are inclusive, and a pause is obeyed at once (B1)."""

from __future__ import annotations

import os
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rae_node.guard.policy import (
    Decision,
    Reading,
    Rules,
    decide,
    follow_gpu,
    gpu_must_rest,
    yield_reason,
)
from rae_node.guard.sources.base import Watched, look_once
from rae_node.guard.sources.load import LoadSource, Sample
from rae_node.guard.sources.pause import PauseSource
from rae_node.telemetry.journal import Journal
from rae_protocol.models import Availability
from tests.unit.node.harness import SetClock

RULES = Rules(True, True, {"cpu_percent": 80.0})
CLEAR = Reading("load", measures={"cpu_percent": 80.0})


def test_a_load_equal_to_the_limit_is_safe_and_above_is_not() -> None:
    """Contract: B1."""
    assert decide(RULES, [CLEAR], 0) == Decision(True, True, Availability.OPEN, ())
    above = decide(RULES, [Reading("load", measures={"cpu_percent": 80.1})], 0)
    assert (above.safe, above.availability, above.reasons) == (
        False,
        Availability.OWNER,
        ("cpu_percent_high",),
    )


@pytest.mark.parametrize(
    ("readings", "availability", "reason"),
    [
        ([Reading("tty", None)], Availability.BLIND, "blind_tty"),
        (
            [Reading("load", measures={"cpu_percent": None})],
            Availability.BLIND,
            "blind_cpu_percent",
        ),
        ([Reading("tty", True, "tty_active")], Availability.OWNER, "tty_active"),
        ([Reading("pause", True, "paused", Availability.PAUSED)], Availability.PAUSED, "paused"),
    ],
)
def test_what_is_there_or_unknown_is_unsafe(
    readings: list[Reading], availability: Availability, reason: str
) -> None:
    found = decide(RULES, [CLEAR, *readings], 0)
    assert (found.safe, found.may_poll, found.availability) == (False, False, availability)
    assert found.reasons == (reason,)


def test_switched_off_automation_or_protection_never_polls() -> None:
    """Contract: B1."""
    off = decide(Rules(False, True, {}), [], 0)
    assert (off.safe, off.reasons) == (False, ("automation_disabled",))
    blind = decide(Rules(True, False, {}), [], 0)
    assert (blind.safe, blind.reasons) == (False, ("user_protection_inactive",))


def test_the_cooldown_lets_work_run_but_asks_for_none() -> None:
    """Contract: B1."""
    found = decide(RULES, [CLEAR], 3.0)
    assert (found.safe, found.may_poll, found.reasons) == (True, False, ("cooldown",))


readings_ = st.builds(
    Reading,
    source=st.sampled_from(["a", "b"]),
    present=st.sampled_from([True, False, None]),
    measures=st.dictionaries(
        st.just("cpu_percent"), st.none() | st.floats(0, 100, allow_nan=False), max_size=1
    ),
)


@given(st.lists(readings_, max_size=5), readings_, st.floats(0, 5))
def test_one_more_reading_never_makes_an_unsafe_machine_safe(
    readings: list[Reading], more: Reading, cooldown: float
) -> None:
    before, after = decide(RULES, readings, cooldown), decide(RULES, [*readings, more], cooldown)
    assert before.safe or not after.safe
    assert set(before.reasons) - {"cooldown"} <= set(after.reasons)
    assert after.may_poll <= after.safe
    assert (after.availability is Availability.OPEN) == after.may_poll


def test_the_yield_says_who_wanted_it() -> None:
    owner = decide(RULES, [Reading("tty", True)], 0)
    blind = decide(RULES, [Reading("tty", None)], 0)
    assert (yield_reason(owner), yield_reason(blind)) == ("owner", "guard")


def load(samples: list[Sample], times: list[float], window: float = 5.0) -> LoadSource:
    return LoadSource(
        window, take=iter(samples).__next__, monotonic=iter(times).__next__, sleep=lambda _: None
    )


def test_our_own_work_does_not_count_as_load() -> None:
    source = load([Sample(0, 0, 0), Sample(4, 4, 3), Sample(8, 8, 7)], [0.0, 1.0, 2.0])
    assert source.read().measures["cpu_percent"] == 25.0
    assert source.read().measures["cpu_percent"] == 12.5


def test_the_load_is_that_of_the_window_only() -> None:
    samples = [Sample(0, 0, 0), Sample(10, 10, 0), Sample(10, 20, 0), Sample(10, 30, 0)]
    source = load(samples, [0.0, 1.0, 2.0, 3.0], window=1.0)
    shown = [source.read().measures["cpu_percent"] for _ in range(3)]
    assert shown == [100.0, 50.0, 0.0]


def test_two_looks_in_the_same_moment_keep_the_last_value() -> None:
    source = load([Sample(0, 0, 0), Sample(0, 0, 0)], [0.0, 0.01])
    assert source.read().measures["cpu_percent"] is None


def test_a_short_peak_keeps_new_work_away_and_what_runs_goes_on() -> None:
    rules = Rules(True, True, {"cpu_percent": 80.0})
    busy = [0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 2, 3, 4, 5, 6]  # seconds of a machine with one core
    samples = [Sample(used, second, 0) for second, used in enumerate(busy)]
    source = load(samples, [*map(float, range(len(busy)))])
    shown = [decide(rules, [source.read()], 0) for _ in busy[1:]]
    assert [one.safe for one in shown] == [True] * 13 + [False]
    assert [one.may_poll for one in shown] == [True] * 2 + [False] * 5 + [True] * 2 + [False] * 5
    assert shown[2].reasons == ("cpu_percent_high",)
    assert shown[2].availability is Availability.OWNER


def test_a_peak_and_the_cooldown_are_both_said_and_a_peak_without_a_limit_is_none() -> None:
    peak = Reading("load", peaks={"cpu_percent": 99.0, "unknown": 99.0})
    rules = Rules(True, True, {"cpu_percent": 80.0})
    assert decide(rules, [peak], 5.0).reasons == ("cooldown", "cpu_percent_high")
    assert decide(Rules(True, True, {"cpu_percent": 99.0}), [peak], 0.0).may_poll


def test_a_pause_survives_a_restart_and_ends_by_itself(tmp_path: Path) -> None:
    clock, file = SetClock(), tmp_path / "pause.json"
    assert PauseSource(file, clock).set(60) == clock.wall() + 60
    assert PauseSource(file, clock).read().present
    clock.passes(60)
    assert not PauseSource(file, clock).read().present


def test_a_pause_without_an_end_holds_until_resume(tmp_path: Path) -> None:
    clock = SetClock()
    source = PauseSource(tmp_path / "pause.json", clock)
    source.set(None)
    clock.passes(1e12)
    assert source.read().present and source.until() == 0
    source.clear()
    assert not source.read().present


class Stuck:
    name = "stuck"

    def __init__(self) -> None:
        self.free = threading.Event()
        self.reads = 0

    def read(self) -> Reading:
        self.reads += 1
        self.free.wait(60)
        return Reading(self.name, False)


@pytest.fixture
def stuck() -> Iterator[Stuck]:
    source = Stuck()
    yield source
    source.free.set()


def test_a_hung_source_is_blind_and_neither_asked_twice_nor_waited_for_again(stuck: Stuck) -> None:
    watched = Watched(stuck)
    for timeout_s in (0.05, 1e6, 1e6):
        watched.ask()
        assert watched.reading(timeout_s).present is None
    assert stuck.reads == 1


def test_what_a_hung_source_says_late_is_not_believed(stuck: Stuck) -> None:
    watched = Watched(stuck)
    watched.ask()
    assert watched.reading(0.01).present is None
    stuck.free.set()
    assert watched._answered.wait(5)
    assert watched.reading(1).present is None
    watched.ask()
    assert watched.reading(5).present is False


def test_a_failing_source_is_blind() -> None:
    class Failing:
        name = "failing"

        def read(self) -> Reading:
            raise OSError("no such device")

    watched = Watched(Failing())
    watched.ask()
    assert watched.reading(5).present is None


def test_decisions_are_kept_for_seven_days(tmp_path: Path) -> None:
    """Contract: B6."""
    (tmp_path / "decisions-2026-01-01.jsonl").write_text("old")
    (tmp_path / "decisions-2026-01-09.jsonl").write_text("young")
    clock = SetClock()
    clock.wall_at = 1768046400.0
    log = Journal(tmp_path, clock)
    log.write(1768046400.0, "decision", safe=True)  # 2026-01-10
    log.write(1768046401.0, "decision", safe=False)
    names = sorted(file.name for file in tmp_path.glob("*.jsonl"))
    assert names == ["decisions-2026-01-09.jsonl", "decisions.jsonl"]
    assert (tmp_path / "decisions.jsonl").read_text().count("\n") == 2


def test_a_clock_that_goes_back_and_forth_loses_no_decision(tmp_path: Path) -> None:
    """Contract: B6."""
    (tmp_path / "decisions-2026-01-09.jsonl").write_text("first\n")
    (tmp_path / "decisions.jsonl").write_text("second\n")
    os.utime(tmp_path / "decisions.jsonl", (1767960000, 1767960000))  # 2026-01-09
    clock = SetClock()
    clock.wall_at = 1768046400.0
    Journal(tmp_path, clock).write(1768046400.0, "decision", safe=True)  # 2026-01-10
    assert (tmp_path / "decisions-2026-01-09.jsonl").read_text() == "first\nsecond\n"
    assert (tmp_path / "decisions.jsonl").read_text().count("\n") == 1


def test_a_source_that_cannot_tell_says_why(tmp_path: Path) -> None:
    class Failing:
        name = "failing"

        def read(self) -> Reading:
            raise OSError("no such device")

    readings, problems = look_once([Failing(), PauseSource(tmp_path / "pause", SetClock())], 5)
    assert [one.present for one in readings] == [None, False]
    assert problems == {"failing": "no such device"}


@given(st.lists(st.tuples(st.floats(0.1, 20), st.booleans()), max_size=40))
def test_no_run_of_the_gpu_is_longer_than_its_bound(steps: list[tuple[float, bool]]) -> None:
    """Contract: B10."""
    now, since, last, run = 0.0, 0.0, -1000.0, None
    for pause, wanted in steps:
        now += pause
        run = follow_gpu(run, now, False, rest_s=10)
        working = wanted and not gpu_must_rest(run, longest_s=60)
        run = follow_gpu(run, now, working, rest_s=10)
        if not working:
            continue
        if now - last >= 10:
            since = now
        last = now
        assert now - since <= 60 + 20  # the run and one more step of work
