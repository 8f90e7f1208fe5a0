"""owner.yaml: the owner's own rules tighten, count at once, and close the node when wrong."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from datetime import datetime
from pathlib import Path
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from rae_node.build import build_sources
from rae_node.config.files import NodeConfig, RuntimeConfig, dev_config, dev_runtime
from rae_node.config.layout import Layout
from rae_node.config.tuning import Settings
from rae_node.errors import ConfigError, NodeError
from rae_node.guard.gpu_rules import Resting
from rae_node.guard.loop import rules_of
from rae_node.guard.owner_file import OwnerFile, load_owner
from rae_node.guard.owner_rules import (
    DAYS,
    STRICT,
    OwnerRules,
    causes,
    opens_at,
)
from rae_node.guard.policy import Reading, decide
from rae_node.guard.sources.owner import OwnerSource
from rae_protocol.clock import SystemClock

RUNTIME = RuntimeConfig.model_validate(dev_runtime())


class At:
    """A clock that shows what a test wants."""

    def __init__(self, now: float = 1_780_000_000.0) -> None:
        self.now = now

    def wall(self) -> float:
        return self.now

    boot = monotonic = wall


@pytest.fixture
def file(tmp_path: Path) -> Path:
    tmp_path.chmod(0o755)
    return tmp_path / "owner.yaml"


def rules_from(file: Path, text: str) -> OwnerRules:
    file.write_text(text)
    file.chmod(0o644)
    return load_owner(file)


def codes(rules: OwnerRules, now: float, running: Mapping[int, str] | None = None) -> list[str]:
    return [one.code for one in causes(rules, now, running or {}, "owner.yaml", opens_at)]


def test_without_the_file_the_strict_defaults_count(file: Path) -> None:
    assert OwnerFile(file).rules() == STRICT
    assert codes(STRICT, 0.0) == []
    assert STRICT.resting == Resting()
    assert rules_from(file, "# nothing yet\n") == STRICT
    empty = "lend:\npresent_while:\nlimits:\n  # cpu_percent: 40\ngpu_may_rest:\n"
    assert rules_from(file, empty) == STRICT


def test_lend_never_closes_until_its_end_and_always_lifts_only_the_hours(file: Path) -> None:
    end = datetime(2030, 12, 24, 18, tzinfo=ZoneInfo("UTC")).timestamp()
    never = rules_from(file, "time_zone: UTC\nlend: never until 2030-12-24 18:00\n")
    assert codes(never, end - 1) == ["owner_never"] and codes(never, end) == []
    (cause,) = causes(never, end - 60, {}, "owner.yaml", opens_at)
    assert cause.left_s == 60
    closed = rules_from(file, "hours: {}\n")
    assert codes(closed, end) == ["owner_hours"]
    always = rules_from(file, "time_zone: UTC\nhours: {}\nlend: always until 2030-12-24 18:00\n")
    assert codes(always, end - 1) == [] and codes(always, end + 1) == ["owner_hours"]
    assert codes(rules_from(file, "lend: never\n"), 0.0) == ["owner_never"]


def test_a_program_that_means_presence_counts_while_it_runs(file: Path) -> None:
    rules = rules_from(file, "present_while: [blender, a-very-long-program-name]\n")
    assert codes(rules, 0.0, {7: "bash"}) == []
    (cause,) = causes(rules, 0.0, {7: "blender"}, "owner.yaml", opens_at)
    assert cause.code == "owner_program" and "blender (process 7)" in cause.who
    (cause,) = causes(rules, 0.0, {7: "blender", 9: "blender"}, "owner.yaml", opens_at)
    assert "blender (2 processes)" in cause.who
    assert codes(rules, 0.0, {7: "a-very-long-pro"}) == ["owner_program"]


SECTIONS: dict[str, Any] = {
    "lend": st.sampled_from(["auto", "always", "never", "always until 2100-01-01"]),
    "hours": st.dictionaries(st.sampled_from(["daily", *DAYS]), st.just(["00:00-24:00"])),
    "limits": st.dictionaries(
        st.sampled_from(["cpu_percent", "gpu_percent", "vram_gb"]), st.integers(0, 100)
    ),
    "present_while": st.lists(st.sampled_from(["blender", "obs"])),
}


@settings(max_examples=200, deadline=None)
@given(
    said=st.fixed_dictionaries({}, optional=SECTIONS),
    present=st.sampled_from([True, False, None]),
    cpu=st.floats(0, 120), gpu=st.floats(0, 120),
)  # fmt: skip
def test_apart_from_the_two_keys_no_content_makes_a_decision_safe(
    tmp_path_factory: pytest.TempPathFactory,
    said: dict[str, Any],
    present: bool | None,
    cpu: float,
    gpu: float,
) -> None:
    file = tmp_path_factory.mktemp("owner") / "owner.yaml"
    rules = rules_from(file, json.dumps(said))
    readings = [
        Reading("logind", present, "graphical_session"),
        Reading("load", measures={"cpu_percent": cpu, "gpu_percent": gpu}),
    ]
    own = Reading("owner", bool(codes(rules, 0.0)), "owner_hours")
    without = decide(rules_of(RUNTIME, STRICT), readings, 0.0)
    with_it = decide(rules_of(RUNTIME, rules), [*readings, own], 0.0)
    assert without.safe or not with_it.safe
    assert without.may_poll or not with_it.may_poll


def test_quiet_times_and_limits_only_tighten(file: Path) -> None:
    rules = rules_from(file, "limits: {cpu_percent: 100, gpu_percent: 40, vram_gb: 4}\n")
    assert rules_of(RUNTIME, rules).limits == {
        "cpu_percent": RUNTIME.safety.max_cpu_percent, "gpu_percent": 40.0, "vram_gb": 4.0,
    }  # fmt: skip


def test_a_longer_quiet_time_of_the_owners_counts_and_a_shorter_one_does_not(
    file: Path, layout: Layout
) -> None:
    config = NodeConfig.model_validate(dev_config("n1", "http://127.0.0.1:1"))
    master, used = os.openpty()  # the kernel stamps a terminal when it is made
    name = os.ttyname(used)

    def held(idle_minutes: float, text: str) -> bool:
        rules_from(file, text)
        sections = dev_runtime()
        sections["safety"]["idle_required_minutes"] = idle_minutes
        source = build_sources(
            config, lambda: RuntimeConfig.model_validate(sections), Settings(), SystemClock(),
            layout, owner=OwnerFile(file), names=("tty",), ours=frozenset,
        )["tty"]  # fmt: skip
        return any(f"terminal {name}:" in one.who for one in source.read().holders)

    try:
        assert not held(0, "lend: auto\n")
        assert held(0, "limits: {terminal_idle_minutes: 60}\n")
        assert not held(0, "limits: {input_idle_minutes: 60}\n")
        assert held(60, "limits: {terminal_idle_minutes: 0}\n")
    finally:
        os.close(master)
        os.close(used)


# Wrong files


BAD = {
    "lend: sometimes\n": "owner.yaml:1: lend: 'sometimes' is no such rule; write auto",
    "lend: never until christmas\n": "is no date and time",
    "lend: never until 9999-12-31\n": "is out of reach",
    "lend: never until 0001-01-01\n": "is out of reach",
    "lend: never 2030-01-01\n": "write auto, always or never",
    "lend: no\n": "write auto, always or never",
    'lend: ""\n': "write auto, always or never",
    "lend:never\n": "a space after the colon",
    "hours: {mon: 18:00}\n": "write 18:00-08:00",
    "hours: {mon: [18:00]}\n": "write 18:00-08:00",
    "hours: 18:00-08:00\n": "write lines such as `mon-fri: [18:00-08:00]` below it",
    "hours:\n  mon-fri: [18:00-08:00]\n  sat: [all]\n": "owner.yaml:3: ",
    "hours:\n  mon: [00:00-24:00]\n  weekend: [00:00-24:00]\n": "owner.yaml:3: ",
    "lend: auto\nmon-fri: [18:00-08:00]\n": "indent it below that line",
    "time_zone: Europe/Nowhere\n": "timedatectl list-timezones",
    "time_zone: ../../etc/passwd\n": "is no time zone",
    "\n\ngpu_resting: yes\n": "owner.yaml:3: ",
    "gpu_resting: relaxed\n": "gpu_resting",
    "gpu_may_rest: firefox\n": "write [firefox]",
    "gpu_may_rest: [/usr/bin/firefox]\n": "as `ps -e` shows it",
    "limits: {cpu: 3}\n": "known here are cpu_percent",
    "limits: {cpu_percent: 101}\n": "cpu_percent",
    "limits: {input_idle_minutes: -1}\n": "input_idle_minutes",
    "idle: 3\n": "known here are gpu_may_rest",
    "lend: auto\nlend: never\n": "stands there twice",
    "- lend\n": "holds no settings",
    "": "is empty; write `lend: auto` into it, or remove it",
    "\n\n": "is empty",
    "null\n": "is empty",
    "hours:\n": "has no days; write lines such as",
    "{": "no valid YAML",
    "lend: &a never\n": "anchors",
}


@pytest.mark.parametrize("text", BAD)
def test_a_wrong_file_closes_the_node_with_the_line_and_the_reason(file: Path, text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        rules_from(file, text)
    assert str(file) in caught.value.message and BAD[text] in caught.value.message
    source = OwnerSource(OwnerFile(file), At(), ours=frozenset)
    with pytest.raises(NodeError):
        source.read()


def test_a_file_that_others_may_write_closes_the_node(file: Path) -> None:
    rules_from(file, "lend: auto\n")
    for mode in (0o664, 0o646):
        file.chmod(mode)
        with pytest.raises(ConfigError, match="chmod go-w"):
            OwnerFile(file).rules()
    file.chmod(0o644)
    file.parent.chmod(0o777)
    with pytest.raises(ConfigError, match="chmod go-w"):
        OwnerFile(file).rules()


@pytest.mark.skipif(os.getuid() != 0, reason="only root may give files away")
def test_a_file_of_another_user_closes_the_node_and_a_folder_of_a_user_is_a_dev_nodes(
    file: Path,
) -> None:
    rules_from(file, "lend: auto\n")
    os.chown(file, 65534, 65534)
    with pytest.raises(ConfigError, match="chown root"):
        OwnerFile(file).rules()
    os.chown(file.parent, 65534, 65534)
    assert OwnerFile(file).rules() == STRICT


@pytest.mark.parametrize("what", ["a folder", "a pipe", "a link", "a link to nowhere"])
def test_what_is_no_regular_file_closes_the_node(file: Path, what: str) -> None:
    if what == "a folder":
        file.mkdir()
    elif what == "a pipe":
        os.mkfifo(file, 0o600)
    else:
        target = file.with_name("elsewhere.yaml")
        file.symlink_to(target)
        if what == "a link":
            target.write_text("lend: never\n")
    with pytest.raises(ConfigError, match=r"owner\.yaml is no regular file"):
        OwnerFile(file).rules()


def test_a_change_counts_at_once_in_both_directions(file: Path) -> None:
    watched = OwnerFile(file)
    source = OwnerSource(watched, At(), ours=frozenset)
    assert source.read() == Reading("owner", False) and not watched.changed()
    rules_from(file, "lend: never\n")
    assert watched.changed()
    assert source.read().code == "owner_never"
    assert not watched.changed()
    file.write_text("lend: nevre\n")
    for _ in range(2):
        with pytest.raises(ConfigError, match=r"owner\.yaml:1"):
            source.read()
    assert watched.rules_or_strict() == STRICT
    file.write_text("lend: auto\n")
    assert source.read() == Reading("owner", False)
    file.chmod(0o666)
    with pytest.raises(ConfigError, match="chmod"):
        source.read()
    file.chmod(0o644)
    assert source.read() == Reading("owner", False)


class Ticks:
    now = 0.0

    def __call__(self) -> float:
        return self.now


def test_a_file_that_is_replaced_counts_on_and_one_that_was_removed_no_more(file: Path) -> None:
    ticks = Ticks()
    watched = OwnerFile(file, ticks)
    rules_from(file, "lend: never\n")
    assert watched.rules().lend == "never"
    moved = file.rename(file.with_suffix(".bak"))  # as editors do before they write
    assert watched.rules().lend == "never" and watched.changed()
    ticks.now = 1.9
    assert watched.rules().lend == "never"
    moved.rename(file)
    assert watched.rules().lend == "never" and not watched.changed()
    file.unlink()
    ticks.now = 10.0
    assert watched.rules().lend == "never", "seen as gone for the first time"
    ticks.now = 12.1
    assert watched.rules() == STRICT and not watched.changed()


def test_a_program_s_name_is_cut_by_bytes_as_the_kernel_does(file: Path) -> None:
    rules = rules_from(file, "present_while: [Программа]\n")
    cut = "Программа".encode()[:15].decode(errors="replace")
    assert codes(rules, 0.0, {7: cut}) == ["owner_program"]


def test_the_source_finds_the_programs_that_run_and_leaves_ours_out(file: Path) -> None:
    name = Path(f"/proc/{os.getpid()}/comm").read_text().strip()
    rules_from(file, json.dumps({"present_while": [name]}))
    found = OwnerSource(OwnerFile(file), At(), ours=frozenset).read()
    assert found.code == "owner_program"
    assert found.holders[0].who.startswith(f"{name} (")
    every = {int(one.name) for one in Path("/proc").iterdir() if one.name.isdigit()}
    assert not OwnerSource(OwnerFile(file), At(), ours=lambda: every).read().present


def test_outside_its_hours_the_file_says_when_it_opens(file: Path) -> None:
    rules_from(file, "time_zone: UTC\nhours: {daily: [20:00-06:00]}\n")
    clock = At(datetime(2026, 6, 5, 19, 0, tzinfo=ZoneInfo("UTC")).timestamp())
    source = OwnerSource(OwnerFile(file), clock, ours=frozenset)
    (cause,) = source.read().holders
    assert cause.left_s == 3600 and "Friday 19:00 in UTC is outside its hours" in cause.who
    clock.now += 1800
    assert source.read().holders[0].left_s == 1800
    clock.now += 1800
    assert not source.read().present


def test_only_the_two_keys_let_programs_rest_on_the_gpu(file: Path) -> None:
    listed = rules_from(file, "gpu_may_rest: [firefox, steamwebhelper]\n")
    assert listed.resting == Resting(frozenset({"firefox", "steamwebhelper"}))
    assert rules_from(file, "gpu_resting: allowed\n").resting == Resting(everyone=True)
