"""`rae-node why` and `rae-node history`: what blocks, since when, what ends it, what happened."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rae_node import cli
from rae_node.config.layout import Layout
from rae_node.guard.causes import Cause, follow, found_in
from rae_node.guard.policy import Holder, Reading, Rules
from rae_node.owner import history, why
from rae_node.telemetry.journal import Journal
from rae_protocol.clock import SystemClock

RULES = Rules(True, True, {"cpu_percent": 80.0})
TYPED = Holder("input_recent", "input on seat0: 3 s ago", left_s=597.0)


def causes(*readings: Reading, rules: Rules = RULES, **problems: str) -> list[Cause]:
    return [*follow((), found_in(rules, readings, problems), 100.0)]


def test_a_source_that_is_present_names_each_holder_and_one_that_is_blind_its_reason() -> None:
    found = causes(
        Reading("input", True, "input_recent", holders=(TYPED,)),
        Reading("logind", None),
        Reading("gpu", True, "foreign_gpu_process"),
        Reading("tty"),
        logind="logind does not answer",
    )
    assert [(one.source, one.holder.code, one.stops) for one in found] == [
        ("input", "input_recent", True),
        ("logind", "blind_logind", True),
        ("gpu", "foreign_gpu_process", True),
    ]
    assert found[1].holder.who == "logind does not answer"
    assert "rae-node doctor" in found[1].holder.ends


def test_of_thousands_of_holders_a_few_are_named_and_the_rest_is_counted() -> None:
    many = tuple(
        Holder("tty_active", f"pts/{number}", left_s=float(number)) for number in range(5000)
    )
    found = causes(Reading("tty", True, "tty_active", holders=many))
    assert len(found) == 21
    assert (found[-1].holder.who, found[-1].holder.left_s) == ("more of the kind: 4980", 4999.0)
    ever = replace(many[-1], left_s=None)
    *_, last = causes(Reading("tty", True, "tty_active", holders=(*many, ever)))
    assert last.holder.left_s is None


def test_a_measure_above_its_limit_stops_work_and_a_peak_only_holds_new_work_back() -> None:
    mean = Reading("load", measures={"cpu_percent": 81.0}, peaks={"cpu_percent": 99.0})
    (stops,) = causes(mean)
    assert (stops.holder.code, stops.stops) == ("cpu_percent_high", True)
    assert "81, above the limit of 80" in stops.holder.who
    (waits,) = causes(Reading("load", measures={"cpu_percent": 9.0}, peaks={"cpu_percent": 99.0}))
    assert (waits.holder.code, waits.stops) == ("cpu_percent_high", False)
    assert not causes(Reading("load", measures={"cpu_percent": 80.0}, peaks={"cpu_percent": 80.0}))


def test_the_owners_switches_in_runtime_yaml_are_causes() -> None:
    found = causes(rules=Rules(False, False, {}))
    assert [one.holder.code for one in found] == [
        "automation_disabled",
        "user_protection_inactive",
    ]


def test_a_cause_keeps_the_time_at_which_it_was_first_seen() -> None:
    def look(before: tuple[Cause, ...], now: float, *holders: Holder) -> tuple[Cause, ...]:
        reading = Reading("input", bool(holders), "input_recent", holders=holders)
        return follow(before, found_in(RULES, [reading], {}), now)

    seat0 = Holder("input_recent", "input on seat0: 0 s ago")
    later = Holder("input_recent", "input on seat0: 60 s ago")
    seat1 = Holder("input_recent", "input on seat1: 0 s ago")
    first = look((), 1000.0, seat0)
    second = look(first, 1060.0, later, seat1)
    assert [one.since for one in second] == [1000.0, 1060.0]
    assert [one.since for one in look(look(second, 1070.0), 1080.0, seat0)] == [1080.0]
    assert [one.since for one in look(second, 500.0, later)] == [500.0], "the clock was set back"


@pytest.mark.parametrize(
    ("seconds", "words"),
    [
        (0.4, "0 s"),
        (119, "119 s"),
        (120, "2 min"),
        (7199, "120 min"),
        (7200, "2 h 0 min"),
        (172799, "47 h 59 min"),
        (172800, "2 days"),
    ],
)
def test_durations_are_said_as_people_say_them(seconds: float, words: str) -> None:
    assert why.lasting(seconds) == words


def test_without_an_agent_who_may_read_the_files_reads_the_history(
    layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    root = str(layout.root)
    assert cli.main(["history", "--root", root]) == 0
    assert capsys.readouterr().out == "nothing has happened here yet\n"
    Journal(layout.logs, SystemClock()).write(0.0, "agent", text="the agent starts")
    assert cli.main(["history", "--root", root]) == 0
    assert "the agent starts" in capsys.readouterr().out
    assert cli.main(["why", "--root", root]) == 1
    assert "systemctl start rae-node" in capsys.readouterr().err


def test_the_journal_gives_the_newest_entries_over_days_and_skips_broken_lines(
    tmp_path: Path,
) -> None:
    journal = Journal(tmp_path, SystemClock())
    for day in range(3):
        for number in range(3):
            journal.write(day * 86400.0 + number, "agent", text=f"{day}.{number}")
    with (tmp_path / "decisions.jsonl").open("a") as file:
        file.write('{"ts": "1970-01-0\n[]\n')
    texts = [entry["text"] for entry in journal.last(7)]
    assert texts == ["0.2", "1.0", "1.1", "1.2", "2.0", "2.1", "2.2"]
    assert len(journal.last(100)) == 9


def test_lines_of_an_older_release_and_of_a_newer_one_are_no_trouble() -> None:
    old = {"ts": "2026-01-10T12:00:00.000+00:00", "safe": True, "may_poll": True, "reasons": []}
    newer = {"ts": "2026-01-10T12:00:01.000+00:00", "event": "something_else"}
    lines = list(history.in_lines([old, newer, {"ts": "never"}]))
    assert len(lines) == 2 and lines[1].endswith("free: this machine takes work")


def test_a_clock_that_was_set_back_mixes_no_hours() -> None:
    def entry(second: str, text: str) -> dict[str, Any]:
        return {"ts": f"2026-01-10T{second}.000+00:00", "event": "agent", "text": text}

    entries = [entry("12:00:00", "a"), entry("12:00:05", "c"), entry("12:00:04", "b"),
               entry("11:00:06", "d")]  # fmt: skip
    assert [line[-1] for line in history.in_lines(entries)][1:] == ["a", "b", "c", "d"]
