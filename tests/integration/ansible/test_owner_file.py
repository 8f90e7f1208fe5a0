"""owner.yaml is the owner's: provisioning writes what the owner agreed to, and changes nothing."""

from __future__ import annotations

import stat
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from rae_node.guard.gpu_rules import Resting
from rae_node.guard.owner_file import load_owner
from tests.integration.ansible.role import Played, included, play

REST = {"node_owner_gpu_may_rest": ["firefox", "steamwebhelper"]}
AGREED = {"node_owner_consents_gpu_resting": True}
OWN = "lend: never until 2030-12-24 18:00\ngpu_may_rest: [blender]\n"


@dataclass(frozen=True)
class Case:
    """Variables of a host, and the owner.yaml that it has already."""

    variables: dict[str, Any] = field(default_factory=dict)
    own: str | None = None


CASES = {
    "silent": Case(),
    "unasked": Case(REST),
    "unasked-all": Case({"node_owner_gpu_resting": "allowed"}),
    "agreed": Case({**REST, **AGREED}),
    "agreed-all": Case({"node_owner_gpu_resting": "allowed", **AGREED}),
    "nameless": Case({"node_owner_gpu_may_rest": ["/usr/bin/firefox"], **AGREED}),
    "silent-owner": Case(own=OWN),
    "other": Case({**REST, **AGREED}, "lend: never\n"),
    "partial": Case({**REST, **AGREED}, OWN),
    "complete": Case({**REST, **AGREED}, "gpu_may_rest: [steamwebhelper, firefox]\n"),
    "wider": Case({**REST, **AGREED}, "gpu_resting: allowed\n"),
    "broken": Case({**REST, **AGREED}, "gpu_may_rest: [\n"),
    "empty": Case({"node_owner_gpu_resting": "allowed", **AGREED}, ""),
}
FRESH = [name for name, case in CASES.items() if case.own is None]
OWNED = [name for name, case in CASES.items() if case.own is not None]


@dataclass(frozen=True)
class Runs:
    """What a check made; the run after it, and a second run on hosts with the file of the first."""

    folder: Path
    made_by_check: list[Path]
    stats: dict[str, tuple[int, ...]]
    first: Played
    second: Played

    def file(self, name: str) -> Path:
        return file_of(self.folder, name)


def file_of(folder: Path, name: str) -> Path:
    return folder / name / "agent" / "owner.yaml"


def stats_of(folder: Path) -> dict[str, tuple[int, ...]]:
    """What a change of any kind would alter."""
    found = {name: file_of(folder, name).stat() for name in OWNED}
    return {name: (one.st_ino, one.st_mtime_ns, one.st_ctime_ns) for name, one in found.items()}


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Runs:
    folder = tmp_path_factory.mktemp("owner")
    hosts = {}
    for name, case in CASES.items():
        file = file_of(folder, name)
        file.parent.mkdir(parents=True)
        if case.own is not None:
            file.write_text(case.own, encoding="utf-8")
            file.chmod(0o640)
        hosts[name] = {"common_release_ready": True, **case.variables}
    before = stats_of(folder)
    paths = {
        "_node_root": f"{folder}/{{{{ inventory_hostname }}}}",
        "_node_check": f"{sys.executable} -m rae_node check-config %s",
    }
    # In the order of a provisioning: the preflight, the role, the report at the end.
    tasks = [included(name) for name in ("check_owner_consent", "owner_file", "owner_report")]
    play(folder / "run", hosts, tasks, paths, "--check", f"--limit={','.join(FRESH)}")
    by_check = [file_of(folder, name) for name in FRESH if file_of(folder, name).exists()]
    first = play(folder / "run", hosts, tasks, paths)
    again = ["--limit=agreed,agreed-all"]
    second = play(folder / "run", hosts, tasks, paths, *again)
    return Runs(folder, by_check, before, first, second)


def said_of(name: str, run: Played) -> str:
    """What a run says of a host's owner.yaml."""
    return run.words.partition(f"{name}: /")[2].partition("ok: [")[0]


def test_without_a_proposal_no_file_is_made(runs: Runs) -> None:
    assert not runs.file("silent").exists()
    assert runs.first.count("silent", "failed") == 0


@pytest.mark.parametrize(
    ("name", "line"),
    [
        ("unasked", "gpu_may_rest: [firefox, steamwebhelper]"),
        ("unasked-all", "gpu_resting: allowed"),
    ],
)
def test_a_proposal_without_the_owner_s_consent_is_refused_with_the_variable_to_set(
    runs: Runs, name: str, line: str
) -> None:
    assert runs.first.count(name, "failed") == 1
    assert not runs.file(name).exists()
    said = runs.first.words.partition(f"{name}: node_owner_gpu_may_rest or ")[2]
    assert line in said.partition("Only the owner")[0]
    assert "Ask the owner, then set node_owner_consents_gpu_resting to true" in said


def test_a_check_makes_no_file(runs: Runs) -> None:
    assert runs.made_by_check == []


def test_lines_that_the_owner_agreed_to_are_written_once(runs: Runs) -> None:
    rules = load_owner(runs.file("agreed"))
    assert rules.resting == Resting(frozenset({"firefox", "steamwebhelper"}), everyone=False)
    rules = load_owner(runs.file("agreed-all"))
    assert rules.resting == Resting(frozenset(), everyone=True)
    for name in ("agreed", "agreed-all"):
        info = runs.file(name).stat()
        assert (stat.S_IMODE(info.st_mode), info.st_uid) == (0o644, runs.folder.stat().st_uid)
        assert runs.first.count(name, "changed") == 1
        assert runs.second.count(name, "changed") == 0


def test_what_the_agent_would_refuse_is_not_written(runs: Runs) -> None:
    assert runs.first.count("nameless", "failed") == 1
    assert not runs.file("nameless").exists()


@pytest.mark.parametrize("name", OWNED)
def test_a_file_that_is_there_is_never_changed(runs: Runs, name: str) -> None:
    assert runs.file(name).read_text(encoding="utf-8") == CASES[name].own
    assert stats_of(runs.folder)[name] == runs.stats[name]
    assert runs.first.count(name, "failed") == 0
    assert runs.first.count(name, "changed") == 0


@pytest.mark.parametrize(
    ("name", "lines"),
    [
        ("other", "gpu_may_rest: [firefox, steamwebhelper]"),
        ("partial", "gpu_may_rest: [blender, firefox, steamwebhelper]"),
        ("broken", "gpu_may_rest: [firefox, steamwebhelper]"),
        ("empty", "gpu_resting: allowed"),
    ],
)
def test_what_it_lacks_is_said_at_the_end_line_by_line(runs: Runs, name: str, lines: str) -> None:
    said = said_of(name, runs.first)
    assert str(runs.file(name)) in f"/{said}"
    assert "is its owner's and was not changed" in said
    assert lines in said


@pytest.mark.parametrize("name", ["complete", "wider", "silent-owner"])
def test_what_lacks_nothing_is_not_talked_about(runs: Runs, name: str) -> None:
    assert said_of(name, runs.first) == ""
    assert said_of("agreed", runs.second) == ""
