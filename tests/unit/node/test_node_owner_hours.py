"""The hours of owner.yaml, across clock changes, too, against the C library's local time."""

from __future__ import annotations

import os
import time
from collections.abc import Iterator
from datetime import datetime
from pathlib import Path
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rae_node.guard.owner_file import parse_owner
from rae_node.guard.owner_rules import (
    OwnerRules,
    Window,
    days_of,
    in_hours,
    minutes_of,
    opens_at,
)

ZONES = ("Europe/Berlin", "America/New_York", "Australia/Lord_Howe")
YEAR = (1767225600, 1798761600)  # 2026, in UTC


@pytest.fixture(params=ZONES)
def zone(request: pytest.FixtureRequest) -> Iterator[str]:
    """A zone, which the C library uses as well."""
    before = os.environ.get("TZ")
    os.environ["TZ"] = request.param
    time.tzset()
    yield request.param
    if before is None:
        del os.environ["TZ"]
    else:
        os.environ["TZ"] = before
    time.tzset()


MINUTE = st.integers(0, 1439)
WINDOWS = st.lists(
    st.builds(
        lambda day, start, length: Window(day, start, start + length),
        st.integers(0, 6), MINUTE, st.integers(1, 1440),
    ),
    max_size=4,
)  # fmt: skip


def reference(windows: list[Window], now: float) -> bool:
    """Every minute of a week, and the C library's idea of the local time."""
    open_minutes = {
        (one.day * 1440 + minute) % (7 * 1440)
        for one in windows
        for minute in range(one.start, one.end)
    }
    local = time.localtime(now)
    return local.tm_wday * 1440 + local.tm_hour * 60 + local.tm_min in open_minutes


@pytest.mark.parametrize("around", ["any", "changes"])
def test_hours_follow_the_clock_on_the_wall_also_when_it_is_changed(zone: str, around: str) -> None:
    changes = [
        at for at in range(*YEAR, 1800)
        if time.localtime(at).tm_gmtoff != time.localtime(at + 1800).tm_gmtoff
    ]  # fmt: skip
    assert len(changes) == 2
    near = st.builds(lambda at, by: at + by, st.sampled_from(changes), st.integers(-10800, 10800))
    moments = st.integers(*YEAR) if around == "any" else near

    @settings(max_examples=300, deadline=None)
    @given(windows=WINDOWS, now=moments)
    def hours(windows: list[Window], now: int) -> None:
        local = datetime.fromtimestamp(now, ZoneInfo(zone))
        assert in_hours(windows, local) is reference(windows, now)

    hours()


@settings(max_examples=60, deadline=None)
@given(windows=WINDOWS, now=st.integers(*YEAR), name=st.sampled_from(ZONES))
def test_the_next_opening_is_the_first_minute_within_the_hours(
    windows: list[Window], now: int, name: str
) -> None:
    zone = ZoneInfo(name)
    rules = OwnerRules(zone=zone, windows=tuple(windows))
    found = opens_at(rules, now)
    assert (found is None) is (not windows)
    if found is not None:
        assert found > now
        assert in_hours(windows, datetime.fromtimestamp(found, zone))
        between = range(now - now % 60 + 60, int(found), 60)
        assert not any(in_hours(windows, datetime.fromtimestamp(at, zone)) for at in between)


@pytest.mark.parametrize(
    ("text", "days"),
    [("mon", [0]), ("mon-fri", [0, 1, 2, 3, 4]), ("sat, sun", [5, 6]), ("FRI-MON", [4, 5, 6, 0]),
     ("daily", list(range(7)))],
)  # fmt: skip
def test_days_are_written_as_people_write_them(text: str, days: list[int]) -> None:
    assert list(days_of(text)) == days


@pytest.mark.parametrize("text", ["", "mo", "mon-", "-fri", "mon-fri-sun", "weekend", "mon,,tue"])
def test_what_is_no_day_is_refused_with_the_way_to_write_it(text: str) -> None:
    with pytest.raises(ValueError, match="write mon, mon-fri"):
        days_of(text)


@pytest.mark.parametrize(
    "text",
    ["", "18-8", "18:00", "18:00-", "25:00-08:00", "18:60-08:00", "08:00-08:00", "24:00-08:00",
     "-1:00-08:00", "18:0-08:00", "١٨:00-08:00"],
)  # fmt: skip
def test_what_are_no_hours_is_refused_with_the_way_to_write_them(text: str) -> None:
    with pytest.raises(ValueError, match="write 18:00-08:00"):
        minutes_of(text)


def test_hours_over_midnight_belong_to_the_day_on_which_they_begin(tmp_path: Path) -> None:
    file = tmp_path / "owner.yaml"
    file.write_text("time_zone: Europe/Berlin\nhours: {fri: 22:00-06:00}\n")
    rules = parse_owner(file)
    berlin = ZoneInfo("Europe/Berlin")
    within = [datetime(2026, 6, 5, 22, 0), datetime(2026, 6, 6, 5, 59)]  # Friday, Saturday
    outside = [datetime(2026, 6, 5, 5, 0), datetime(2026, 6, 6, 6, 0), datetime(2026, 6, 6, 23, 0)]
    assert rules.windows is not None
    for moment in (*within, *outside):
        local = moment.replace(tzinfo=berlin)
        assert in_hours(rules.windows, local) is (moment in within), moment
