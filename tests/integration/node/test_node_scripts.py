"""The owner's scripts in a tree like /opt/rae-node, as /usr/bin/python3 runs them."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.fake_nvml import GPU, LOST, FakeNvml
from tests.integration.node.harness import Tree
from tools.fake_logind import session

USER, GPU_LOAD = "check_user_idle.py", "check_gpu_load.py"


def test_a_free_machine_is_safe_to_run(tree: Tree) -> None:
    """Contract: B2, B3."""
    assert tree.check(USER) == (0, [])
    assert tree.check(GPU_LOAD) == (0, [])


def test_a_session_a_foreign_gpu_process_and_a_pause_are_not_safe_to_run(
    tree: Tree, fake_nvml: FakeNvml
) -> None:
    """Contract: B2."""
    tree.logind.sessions["2"] = session("2")
    fake_nvml.show(GPU, f"proc 0 {os.getpid()} 100 5")
    (tree.layout.run / "pause.json").write_text('{"until": null}')
    assert tree.check(USER) == (1, ["graphical_session", "foreign_gpu_process", "paused"])


@pytest.mark.parametrize(
    ("gpu", "reasons"),
    [
        ("gpu GPU-0 16384 300 90", []),
        ("gpu GPU-0 16384 300 91", ["gpu_percent_high"]),
        ("gpu GPU-0 16384 14336 0", []),
        ("gpu GPU-0 16384 14337 0", ["vram_gb_high"]),
    ],
)
def test_the_limits_are_those_of_runtime_yaml_and_equal_is_safe(
    tree: Tree, fake_nvml: FakeNvml, gpu: str, reasons: list[str]
) -> None:
    """Contract: B3."""
    fake_nvml.show(gpu)
    assert tree.check(GPU_LOAD) == (bool(reasons), reasons)


BREAK: dict[str, tuple[Callable[[Tree, FakeNvml], object], str]] = {
    "the bus is missing": (lambda tree, _: tree.logind.end(), "blind_logind"),
    "logind hangs": (lambda tree, _: setattr(tree.logind, "silent", True), "blind_logind"),
    "logind raves": (lambda tree, _: tree.logind.sessions.update({"2": {}}), "blind_logind"),
    "the input detector is missing": (
        lambda tree, _: tree.set("config.yaml", "input_socket", to="/nowhere"),
        "blind_input",
    ),
    "NVML fails": (lambda _, nvml: nvml.show(GPU, "error nvmlInitWithFlags 9"), "blind_gpu"),
    "a GPU is lost": (
        lambda _, nvml: nvml.show(GPU, f"error nvmlDeviceGetHandleByIndex_v2 {LOST}"),
        "blind_gpu",
    ),
    "NVML hangs": (lambda _, nvml: nvml.show(GPU, "hang nvmlDeviceGetMemoryInfo"), "blind_gpu"),
    "NVML is missing": (lambda tree, _: tree.without_nvml(), "blind_gpu"),
    "no GPU is there": (lambda _, nvml: nvml.show(""), "blind_gpu"),
    "a bad runtime.yaml": (
        lambda tree, _: tree.layout.runtime_file.write_text("automation: 3"),
        "failed",
    ),
    "no config.yaml": (lambda tree, _: tree.layout.config_file.unlink(), "failed"),
}


@pytest.mark.parametrize("trouble", BREAK)
def test_a_source_that_is_missing_hangs_or_raises_is_do_not_run(
    tree: Tree, fake_nvml: FakeNvml, trouble: str
) -> None:
    """Contract: B2, B3."""
    make, reason = BREAK[trouble]
    make(tree, fake_nvml)
    assert tree.check(USER) == (1, [reason])
    if reason not in {"blind_logind", "blind_input"}:
        assert tree.check(GPU_LOAD) == (1, [reason])


@pytest.mark.parametrize("argument", ["--help", "--root", "--nonsense"])
def test_an_argument_that_it_does_not_know_is_do_not_run(tree: Tree, argument: str) -> None:
    """Contract: B2, B3."""
    assert tree.check(USER, argument) == (1, ["failed"])
    assert tree.check(GPU_LOAD, argument) == (1, ["failed"])


def test_an_answer_that_cannot_be_written_is_do_not_run(tree: Tree) -> None:
    """Contract: B2."""
    with Path("/dev/full").open("w") as full:
        command = [sys.executable, str(tree.layout.agent / USER)]
        done = subprocess.run(command, env=tree.env, stdout=full, timeout=60, check=False)
    assert done.returncode == 1


@pytest.mark.parametrize("key", ["detect_active_user", "enabled"])
def test_switched_off_automation_or_protection_is_do_not_run(tree: Tree, key: str) -> None:
    """Contract: B1."""
    tree.set("runtime.yaml", "automation" if key == "enabled" else "safety", key, to=False)
    assert tree.check(USER)[0] == 1


def test_the_dry_run_prints_the_four_cases_and_executes_nothing(
    tree: Tree, fake_nvml: FakeNvml
) -> None:
    """Contract: B7."""
    before = sorted(tree.layout.root.rglob("*"))
    fake_nvml.show(GPU, f"proc 0 {os.getpid()} 100 5")
    done = tree.run("auto_runner.py", "--dry-run")
    lines = done.stdout.splitlines()
    assert done.returncode == 0, done.stderr
    assert [" ".join(line.split()[:4]) for line in lines[1:5]] == [
        "User active BLOCKS work:", "User idle ALLOWS work", "GPU busy BLOCKS work:",
        "GPU free ALLOWS work",
    ]  # fmt: skip
    assert lines[5].startswith("Now, really  BLOCKS work:")
    assert "a program that is not ours has the GPU open" in lines[5]
    made = [path for path in tree.layout.root.rglob("*") if "__pycache__" not in str(path)]
    assert sorted(made) == before


@pytest.mark.parametrize("key", ["detect_active_user", "enabled"])
def test_the_dry_run_lets_nothing_work_where_a_switch_is_off(tree: Tree, key: str) -> None:
    """Contract: B7."""
    tree.set("runtime.yaml", "automation" if key == "enabled" else "safety", key, to=False)
    done = tree.run("auto_runner.py", "--dry-run")
    assert done.returncode == 0, done.stderr
    assert "ALLOWS" not in done.stdout


def test_the_dry_run_says_what_it_leaves_out_without_an_agent(tree: Tree) -> None:
    """Contract: B7."""
    said = tree.run("auto_runner.py", "--dry-run").stdout.splitlines()[-1]
    assert said.startswith("The agent") and "cooldown" in said and "left out" in said


def test_the_dry_run_says_what_blinds_the_guard(tree: Tree) -> None:
    """Contract: B7."""
    tree.logind.end()
    done = tree.run("auto_runner.py", "--dry-run")
    assert done.returncode == 0 and "systemd-logind does not answer" in done.stdout


def test_capabilities_are_printed_as_json(tree: Tree) -> None:
    """Contract: C2."""
    found = json.loads(tree.run("capabilities.py").stdout)
    assert found["node_id"] == "n1" and found["gpu"][0]["uuid"] == "GPU-0"


def test_the_executor_says_whether_a_command_is_allowed(tree: Tree) -> None:
    yes = tree.run("executor.py", "--", "echo", "hello")
    assert yes.returncode == 0 and "nothing was run" in yes.stdout
    no = tree.run("executor.py", "--", "rm", "-rf", "x")
    assert no.returncode == 1 and "allow-list" in no.stderr


@pytest.mark.parametrize("script", ["auto_runner.py", "main.py"])
def test_main_and_auto_runner_start_the_agent_of_their_own_tree(tree: Tree, script: str) -> None:
    """Contract: A13."""
    (tree.layout.agent / "enrolment.json").unlink()
    done = tree.run(script)
    assert done.returncode == 1
    assert f"{tree.layout.agent}/enrolment.json cannot be read" in done.stderr


def test_a_python_without_the_agent_is_handed_over_to_the_installed_one(tree: Tree) -> None:
    """Contract: B4."""
    bare = str(Path(sys.base_prefix) / "bin" / "python3")
    alone = tree.run(USER, python=bare)
    assert alone.returncode == 1 and "install the agent below" in alone.stderr
    assert "Traceback" not in alone.stderr
    installed = tree.layout.root / "current" / "bin"
    installed.mkdir(parents=True)
    tree.program("python", f'exec "{sys.executable}" "$@"')
    (tree.programs / "python").rename(installed / "python")
    assert tree.check(USER, python=bare) == (0, [])


def test_without_an_installed_agent_too_the_environment_takes_no_part(
    tree: Tree, tmp_path: Path
) -> None:
    """Contract: B4."""
    fake = tmp_path / "fake" / "rae_node"
    fake.mkdir(parents=True)
    (fake / "__init__.py").touch()
    (fake / "checks.py").write_text("print('SAFE TO RUN')")
    tree.env["PYTHONPATH"] = str(fake.parent)
    assert tree.check(USER) == (0, [])
