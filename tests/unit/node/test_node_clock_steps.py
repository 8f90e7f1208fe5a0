"""A step of the wall clock lends no paused machine, and deletes nothing."""

from __future__ import annotations

import json
import os
from dataclasses import asdict
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rae_node.config.layout import Layout
from rae_node.guard.sources.pause import PauseSource
from rae_node.host.moments import Moment, left_s, moment_of, now_on
from rae_node.telemetry.journal import Journal
from rae_node.telemetry.log import EventLog
from rae_node.workspace.recovery import State, Sweeper, keep, read_state
from rae_protocol.clock import SystemClock
from tests.unit.node.harness import SetClock

HOUR, DAY = 3600.0, 86400.0
IN_2099 = datetime(2099, 1, 1, tzinfo=timezone.utc).timestamp()
STEPS = [-60 * 365 * DAY, -HOUR, HOUR, 30 * DAY, IN_2099 - SetClock().wall()]


@pytest.fixture
def clock() -> SetClock:
    return SetClock()


@pytest.mark.parametrize("step", STEPS)
def test_a_pause_lasts_as_long_as_was_asked_for_whatever_the_wall_clock_does(
    tmp_path: Path, clock: SetClock, step: float
) -> None:
    file = tmp_path / "pause.json"
    PauseSource(file, clock).set(0.5 * HOUR)
    clock.wall_at += step
    restarted = PauseSource(file, clock)
    (holder,) = restarted.read().holders
    assert holder.left_s == 0.5 * HOUR
    assert restarted.until() == clock.wall() + 0.5 * HOUR
    clock.passes(0.5 * HOUR - 1)
    assert restarted.read().present
    clock.passes(1)
    assert not restarted.read().present
    assert restarted.until() is None


def test_after_a_reboot_the_wall_clock_tells_how_much_of_a_pause_is_left(
    tmp_path: Path, clock: SetClock
) -> None:
    source = PauseSource(tmp_path / "pause.json", clock)
    source.set(8 * HOUR)
    clock.reboots(off_s=7 * HOUR)
    assert source.left_s() == HOUR
    clock.passes(HOUR)
    assert not source.read().present


def test_after_a_reboot_a_pause_that_is_over_waits_for_the_clock_to_be_set(
    tmp_path: Path, clock: SetClock
) -> None:
    source = PauseSource(tmp_path / "pause.json", clock)
    source.set(0.5 * HOUR)
    clock.reboots(off_s=0.0, wall=clock.wall() + 5 * HOUR)  # a clock of the hardware in local time
    assert source.read().present
    clock.passes(30)
    clock.wall_at -= 5 * HOUR  # NTP
    clock.passes(0.5 * HOUR - 60)
    assert source.read().present
    clock.passes(60)
    assert not source.read().present


@pytest.mark.parametrize("wall", [0.0, IN_2099])
def test_an_impossible_clock_at_boot_begins_a_pause_anew(
    tmp_path: Path, clock: SetClock, wall: float
) -> None:
    source = PauseSource(tmp_path / "pause.json", clock)
    source.set(8 * HOUR)
    clock.reboots(off_s=HOUR, wall=wall)
    assert source.left_s() == 8 * HOUR
    clock.passes(8 * HOUR - 1)
    assert source.read().present
    clock.passes(1)
    assert not source.read().present


@pytest.mark.parametrize(
    "text", ['{"until": 1}', '{"until": 1, "duration_s": 1, "since": {"wall": 0, "boot": 0}}',
             '{"until": 1, "duration_s": NaN, "since": {"wall": 0, "boot": 0, "boot_id": ""}}',
             '{"until": 1, "duration_s": 1, "since": {"wall": NaN, "boot": 0, "boot_id": ""}}'],
)  # fmt: skip
def test_a_pause_of_an_older_release_ends_by_the_wall_and_one_that_cannot_be_read_holds(
    tmp_path: Path, clock: SetClock, text: str
) -> None:
    (tmp_path / "pause.json").write_text(text)
    assert PauseSource(tmp_path / "pause.json", clock).read().present is ("since" in text)


@given(
    st.lists(st.tuples(st.floats(0, 1e5), st.floats(-1e10, 1e10)), max_size=8),
    st.floats(1, 1e6),
)
def test_within_a_boot_the_wall_clock_counts_for_nothing(
    moves: list[tuple[float, float]], seconds: float
) -> None:
    clock, passed = SetClock(), 0.0
    since = now_on(clock)
    for time_s, step in moves:
        clock.passes(time_s)
        clock.wall_at += step
        passed += time_s
        assert left_s(since, seconds, now_on(clock)) == pytest.approx(seconds - passed, abs=1e-3)


@given(st.floats(-1e11, 1e11), st.floats(0, 1e7), st.floats(1, 1e6))
def test_in_a_later_boot_nothing_lasts_longer_than_anew_nor_ends_before_the_clock_is_set(
    wall: float, up_s: float, seconds: float
) -> None:
    left = left_s(Moment(1e9, 50.0, "one"), seconds, Moment(wall, up_s, "two"))
    assert left <= seconds - up_s
    assert left > 0 or up_s >= min(seconds, 600.0)
    unknown = left_s(Moment(1e9, 50.0, ""), seconds, Moment(wall, up_s, ""))
    assert unknown == left


def test_the_machine_names_its_boot_and_a_moment_comes_back_out_of_a_file() -> None:
    assert len(SystemClock().boot_id()) == 36
    moment = now_on(SystemClock())
    assert moment_of(json.loads(json.dumps(moment.as_json()))) == moment


def kept(layout: Layout, clock: SetClock, keep_s: float, boot: float | None = None) -> Path:
    folder, now = layout.workdir / "t1.1", now_on(clock)
    folder.mkdir()
    began = now.boot if boot is None else boot
    keep(folder, State("t1", 1, "lease-00000001", "FAILED", now.wall, keep_s, began, now.boot_id))
    return layout.workdir / "t1.1.kept"


@pytest.fixture
def sweeper(layout: Layout, clock: SetClock, quiet_log: EventLog) -> Sweeper:
    return Sweeper(
        layout.workdir, clock, quiet_log, 60, lambda: False, lambda **_: 7 * DAY,
        lambda folder: (folder / "state.json").unlink() or folder.rmdir(),
    )  # fmt: skip


@pytest.mark.parametrize("step", STEPS)
def test_a_step_of_the_clock_deletes_no_kept_workspace(
    layout: Layout, clock: SetClock, sweeper: Sweeper, step: float
) -> None:
    folder = kept(layout, clock, 2 * DAY)
    clock.wall_at += step
    clock.passes(2 * DAY - 1)
    assert sweeper.sweep() == 0
    clock.passes(1)
    assert sweeper.sweep() == 1
    assert not folder.exists()


@pytest.mark.parametrize("wall", [0.0, IN_2099])
def test_an_impossible_clock_at_boot_deletes_no_kept_workspace(
    layout: Layout, clock: SetClock, sweeper: Sweeper, wall: float
) -> None:
    kept(layout, clock, 2 * DAY)
    was = clock.wall()
    clock.reboots(off_s=0.0, wall=wall)
    clock.passes(HOUR)
    assert sweeper.sweep() == 0
    clock.wall_at = was + 2 * DAY  # it was off so long, and NTP is there now
    assert sweeper.sweep() == 1


def test_no_task_keeps_its_workspace_by_a_moment_that_is_still_to_come(
    layout: Layout, clock: SetClock, sweeper: Sweeper
) -> None:
    kept(layout, clock, 2 * DAY, boot=1e12)
    assert sweeper.sweep() == 1


def test_a_state_of_an_older_release_is_read(layout: Layout) -> None:
    state = State("t1", 1, "lease-00000001", "DONE", 1.0, 2.0, 3.0, "boot")
    old = {key: value for key, value in asdict(state).items() if not key.startswith("boot")}
    (layout.workdir / "state.json").write_text(json.dumps(old))
    assert read_state(layout.workdir) == State("t1", 1, "lease-00000001", "DONE", 1.0, 2.0)


class Days:
    """A journal, one entry each day of a machine that runs through."""

    def __init__(self, folder: Path, clock: SetClock) -> None:
        self.folder, self.clock = folder, clock
        self.journal = Journal(folder, clock)

    def write(self) -> None:
        self.journal.write(self.clock.wall(), "agent", text="a day")
        stamp = self.clock.wall()
        os.utime(self.folder / "decisions.jsonl", (stamp, stamp))

    def run(self, days: int) -> None:
        for _ in range(days):
            self.clock.passes(DAY)
            self.write()

    def reboot(self, off_s: float, wall: float | None = None) -> None:
        self.clock.reboots(off_s, wall)
        self.journal = Journal(self.folder, self.clock)

    def names(self) -> list[str]:
        return sorted(file.name for file in self.folder.glob("decisions-*.jsonl"))


@pytest.fixture
def days(tmp_path: Path, clock: SetClock) -> Days:
    made = Days(tmp_path, clock)
    made.write()
    return made


def test_a_journal_is_kept_for_seven_days_of_running_time(days: Days) -> None:
    """Contract: B6."""
    days.run(7)
    assert len(days.names()) == 7
    first = days.names()[0]
    days.run(1)
    assert len(days.names()) == 7
    assert first not in days.names()


@pytest.mark.parametrize("step", STEPS)
def test_a_step_of_the_clock_deletes_no_journal(days: Days, step: float) -> None:
    """Contract: B6."""
    days.run(3)
    before = days.names()
    days.clock.wall_at += step
    days.clock.passes(2 * HOUR)
    days.write()
    assert set(before) <= set(days.names())
    days.clock.wall_at -= step
    days.clock.passes(2 * HOUR)
    days.write()
    days.run(8)
    assert not set(before) & set(days.names())


@pytest.mark.parametrize("wall", [0.0, IN_2099])
def test_an_impossible_clock_at_boot_deletes_no_journal(days: Days, wall: float) -> None:
    """Contract: B6."""
    days.run(3)
    before, was = days.names(), days.clock.wall()
    days.reboot(0.0, wall)
    days.clock.passes(2 * DAY)
    days.write()
    assert set(before) <= set(days.names())
    days.clock.wall_at = was + 2 * DAY
    days.run(8)
    assert not set(before) & set(days.names())


def test_journals_that_were_kept_long_enough_go_soon_after_a_boot(days: Days) -> None:
    """Contract: B6."""
    days.run(3)
    days.reboot(10 * DAY)
    days.clock.passes(30)
    days.write()
    assert len(days.names()) == 4  # the clock may not be set yet
    days.clock.passes(2 * HOUR)
    days.write()
    assert days.names() == []


def test_journals_of_an_older_release_are_removed_by_the_date_in_their_names(
    tmp_path: Path, clock: SetClock
) -> None:
    """Contract: B6."""
    day = datetime.fromtimestamp(clock.wall(), tz=timezone.utc)
    for age in (1, 20):
        (tmp_path / f"decisions-{day - timedelta(days=age):%Y-%m-%d}.jsonl").write_text("old")
    (tmp_path / "decisions-of-mine.jsonl").write_text("not ours")
    Days(tmp_path, clock).write()
    assert len(Days(tmp_path, clock).names()) == 2
