"""state.json, kept workspaces, a bounded spool, and files that change while the agent runs."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import asdict, replace
from pathlib import Path

import pytest
import yaml

from rae_node.config.files import (
    PROFILES,
    NodeConfig,
    dev_config,
    dev_runtime,
    load_both,
)
from rae_node.config.layout import Layout
from rae_node.config.reload import Live
from rae_node.diagnostics.config_check import check_file
from rae_node.errors import ConfigError
from rae_node.host.moments import Moment, now_on
from rae_node.session.spool import Spool
from rae_node.supervisor import process_tree
from rae_node.telemetry.log import EventLog
from rae_node.workspace.recovery import (
    State,
    Sweeper,
    expired,
    keep,
    read_state,
    recover,
    write_state,
)
from tests.unit.node.harness import SetClock, change, keep_one, make_workspace

RUNNING = State("t1", 1, "lease-00000001", "RUNNING", 1000.0)


def wipe(folder: Path) -> None:
    process_tree.wipe(str(folder))


def miner(*, succeeded: bool) -> float:
    return PROFILES["miner"][0 if succeeded else 1]


def names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir())


def test_a_tasks_state_is_read_as_it_was_written(layout: Layout) -> None:
    """Contract: C6."""
    folder = make_workspace(layout)
    write_state(folder, RUNNING)
    write_state(folder, replace(RUNNING, state="UPLOADING"))
    assert read_state(folder) == replace(RUNNING, state="UPLOADING")
    assert names(folder) == ["state.json", "work"]


@pytest.mark.parametrize(
    "content",
    [
        None, "", "[]", "{", '{"task_id": 5}', "x" * 100_000, json.dumps({"task_id": "t1"}),
        "[" * 30_000,
        *(
            json.dumps(asdict(replace(RUNNING, **{name: value})))
            for name in ("at", "keep_s")
            for value in (10**400, float("nan"), float("inf"))
        ),
    ],
)  # fmt: skip
def test_a_state_that_cannot_be_read_says_nothing_and_hinders_no_start(
    layout: Layout, quiet_log: EventLog, content: str | None
) -> None:
    folder = make_workspace(layout)
    if content is not None:
        (folder / "state.json").write_text(content)
    assert read_state(folder) is None
    recover(layout, quiet_log, wipe)
    assert names(layout.workdir) == []


@pytest.mark.parametrize("content", ["[" * 30_000, '{"lease": ' * 30_000])
def test_an_unreadable_spool_entry_is_removed_and_hinders_no_start(
    layout: Layout, quiet_log: EventLog, content: str
) -> None:
    (layout.spool / "lease-00000009").mkdir()
    (layout.spool / "lease-00000009" / "record.json").write_text(content)
    spool = Spool(layout.spool, quiet_log)
    spool.load()
    assert (len(spool), names(layout.spool)) == (0, [])


def test_a_state_never_leads_out_of_the_workspace(layout: Layout, tmp_path: Path) -> None:
    folder, outside = make_workspace(layout), tmp_path / "outside"
    outside.write_text("mine")
    (folder / "state.json").symlink_to(outside)
    (folder / "state.json.part").symlink_to(outside)
    assert read_state(folder) is None
    write_state(folder, RUNNING)
    assert outside.read_text() == "mine"
    assert read_state(folder) == RUNNING
    (folder / "state.json").unlink()
    os.mkfifo(folder / "state.json")
    assert read_state(folder) is None


def test_the_sweeper_takes_what_is_over_and_everything_when_the_disk_is_low(
    layout: Layout, quiet_log: EventLog
) -> None:
    clock, low = SetClock(), [False]
    for name, age in (("old", 100.0), ("fresh", 1.0), ("future", -100.0)):
        kept = {"boot": clock.boot() - age, "boot_id": clock.boot_id()}
        keep_one(layout, name, at=clock.wall() - age, keep_s=50, **kept)
    make_workspace(layout, "t9.1")  # of a task that runs
    sweeper = Sweeper(layout.workdir, clock, quiet_log, 60, lambda: low[0], miner, wipe)
    assert sweeper.sweep() == 2
    assert names(layout.workdir) == ["fresh.1.kept", "t9.1"]
    low[0] = True
    assert sweeper.sweep() == 1
    assert names(layout.workdir) == ["t9.1"]
    assert not list(expired(layout.workdir, now_on(clock), miner))


def test_a_kept_folder_stays_no_longer_than_config_yaml_says_now(layout: Layout) -> None:
    """Contract: A12."""
    keep_one(layout, "t1", keep_s=1e300, boot=50.0, boot_id="this")
    rae = NodeConfig.model_validate(dev_config("n1", "http://127.0.0.1:1")).keep_s

    def gone(after_s: float, keep_s: Callable[..., float]) -> list[str]:
        now = Moment(1000.0 + after_s, 50.0 + after_s, "this")
        return [folder.name for folder in expired(layout.workdir, now, keep_s)]

    assert gone(0, rae) == ["t1.1.kept"]
    assert gone(86399, miner) == []
    assert gone(86400, miner) == ["t1.1.kept"]


@pytest.mark.parametrize(("name", "state"), [("mine", "DONE"), ("t1.1", "RUNNING")])
def test_a_kept_folder_that_no_agent_made_goes(layout: Layout, name: str, state: str) -> None:
    keep(make_workspace(layout, name), replace(RUNNING, state=state, keep_s=60))
    assert list(expired(layout.workdir, Moment(1000.0), miner))


def test_a_new_agent_wipes_interrupted_tasks_and_logs_what_becomes_of_them(
    layout: Layout, tmp_path: Path
) -> None:
    """Contract: C6."""
    write_state(make_workspace(layout, "t1.1"), RUNNING)
    write_state(
        make_workspace(layout, "t2.1"),
        State("t2", 1, "lease-00000002", "UPLOADING", 1000.0),
    )
    make_workspace(layout, "t3.1")
    keep_one(layout, "t4", keep_s=1e9)
    (layout.spool / "lease-00000002").mkdir()
    log = tmp_path / "log"
    with log.open("w") as stream:
        log_of = EventLog("n1", stream)
        recover(layout, log_of, wipe)
        log_of.flush()
    assert names(layout.workdir) == ["t4.1.kept"]
    told = [json.loads(line) for line in log.read_text().splitlines()]
    fates = {line["task_id"]: line["attrs"].get("becomes") for line in told if line["task_id"]}
    assert fates == {"t1": "queued elsewhere", "t2": "its result waits"}


@pytest.fixture
def files(layout: Layout) -> Layout:
    layout.config_file.write_text(yaml.safe_dump(dev_config("n1", "http://127.0.0.1:1")))
    layout.runtime_file.write_text(yaml.safe_dump(dev_runtime()))
    return layout


def live_of(layout: Layout) -> Live:
    config, runtime = load_both(layout.config_file, layout.runtime_file)
    return Live(layout.config_file, layout.runtime_file, {}, config, runtime)


def test_a_good_change_of_runtime_yaml_counts_at_once(files: Layout) -> None:
    live = live_of(files)
    assert live.look() is None
    change(files.runtime_file, "safety", "max_cpu_percent", 55)
    assert live.look() == "changed"
    assert (live.runtime.safety.max_cpu_percent, live.problem) == (55, None)
    assert live.look() is None


def test_a_bad_change_keeps_the_old_one_and_says_why(files: Layout) -> None:
    live = live_of(files)
    change(files.runtime_file, "safety", "max_cpu_percent", 155)
    assert live.look() == "rejected"
    assert live.runtime.safety.max_cpu_percent == 100
    assert "safety.max_cpu_percent" in str(live.problem)
    files.runtime_file.unlink()
    assert live.look() == "rejected"
    files.runtime_file.write_text(yaml.safe_dump(dev_runtime()))
    live.look()
    assert live.problem is None


def test_config_yaml_counts_from_the_next_start_on(files: Layout) -> None:
    live = live_of(files)
    data = yaml.safe_load(files.config_file.read_text())
    files.config_file.write_text(yaml.safe_dump({**data, "tags": ["new"]}))
    assert live.look() == "waits"
    assert "restart the agent" in str(live.problem)


def test_check_config_names_line_field_and_what_is_allowed(files: Layout) -> None:
    text = files.runtime_file.read_text().replace("max_cpu_percent: 100", "max_cpu_percent: 101")
    files.runtime_file.write_text(text)
    line = 1 + text[: text.index("max_cpu_percent")].count("\n")
    with pytest.raises(ConfigError) as caught:
        check_file(files.runtime_file)
    assert f"runtime.yaml:{line}: safety.max_cpu_percent" in caught.value.message
    assert "less than or equal to 100" in caught.value.message


def test_check_config_sees_a_name_that_stands_there_twice(files: Layout) -> None:
    text = files.config_file.read_text()
    files.config_file.write_text(text + "trusted: false\n")
    lines = text.count("\n")
    with pytest.raises(ConfigError, match=rf"config.yaml:{lines + 1}: trusted .* twice"):
        check_file(files.config_file)


def test_check_config_names_the_line_of_broken_yaml(files: Layout) -> None:
    files.config_file.write_text("node_id: n1\ntrusted: [\n")
    with pytest.raises(ConfigError, match=r"config.yaml:3: this is no valid YAML"):
        check_file(files.config_file)


def test_check_config_holds_the_two_files_against_each_other(files: Layout) -> None:
    change(files.runtime_file, "execution", "heartbeat_interval_sec", 15)
    with pytest.raises(ConfigError, match="make them equal"):
        check_file(files.runtime_file)


@pytest.mark.parametrize(
    ("value", "seconds"), [("24h", 86400), ("7d", 604800), ("90s", 90), (0, 0), (1.5, 1.5)]
)
def test_retention_is_written_as_people_do(value: object, seconds: float) -> None:
    """Contract: C4."""
    data = {**dev_config("n1", "http://127.0.0.1:1"), "workspace": {"keep_failed": value}}
    config = NodeConfig.model_validate(data)
    assert config.keep_s(succeeded=False) == seconds
    assert config.keep_s(succeeded=True) == 0


@pytest.mark.parametrize("value", ["tomorrow", "-5s", True, "5 weeks"])
def test_a_wrong_retention_is_refused(value: object) -> None:
    data = {**dev_config("n1", "http://127.0.0.1:1"), "workspace": {"keep_failed": value}}
    with pytest.raises(ValueError, match="keep_failed"):
        NodeConfig.model_validate(data)
