"""The owner's scripts in a tree like /opt/rae-node, as /usr/bin/python3 runs them; the report."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pytest
import yaml

from rae_node.config import files
from rae_node.config.layout import Layout
from rae_node.diagnostics import report
from rae_node.errors import NodeError
from rae_node.guard.sources.gpu import PCI_DEVICES, nvidia_gpus
from rae_node.package import DATA
from tests.fake_nvml import GPU, LOST, FakeNvml
from tests.integration.node.harness import MakeRig
from tools.fake_logind import FakeLogind, session
from tools.recorded_input import in_a_thread

READY = """\
RAE COMPUTE NODE \N{EN DASH} AUTOMATION STATUS
----------------------------------
Automation enabled: YES
Auto-start on boot: YES
User activity protection: ACTIVE
GPU protection: ACTIVE
Safe for unattended operation: YES

READY FOR CENTRAL CONTROL
"""


@dataclass
class Tree:
    """A node's folder, with programs of its own first on the PATH."""

    layout: Layout
    programs: Path
    env: dict[str, str]
    logind: FakeLogind

    def set(self, file: str, *keys: str, to: object) -> None:
        """Change a value in config.yaml or runtime.yaml; None takes it away."""
        path = self.layout.agent / file
        data = part = yaml.safe_load(path.read_text())
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = to
        path.write_text(yaml.safe_dump(data))

    def leave_out(self, source: str) -> None:
        """Take one of the guard's sources away."""
        names = files.NodeConfig.model_fields["guard_sources"].default
        left = [name for name in names if name != source]
        self.set("config.yaml", "guard_sources", to=left)

    def program(self, name: str, script: str) -> None:
        """Put a program on the PATH."""
        (self.programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.programs / name).chmod(0o755)

    def run(
        self, script: str, *argv: str, python: str = sys.executable
    ) -> subprocess.CompletedProcess[str]:
        """Run one of the scripts."""
        command = [python, str(self.layout.agent / script), *argv]
        return subprocess.run(
            command, env=self.env, capture_output=True, text=True, timeout=60, check=False, cwd="/"
        )

    def check(self, script: str, *argv: str, python: str = sys.executable) -> tuple[int, list[str]]:
        """Exit code and reasons of a guard script, once no person uses this machine itself.

        Whoever types in a terminal while the tests run is seen for some eight seconds, and who
        tests remote desktops on hosts of the lab, for as long as they run.
        """
        end = time.monotonic() + 300
        here = {"tty_active", "remote_desktop", "unaccounted_display"}
        while here & {*(found := self._verdict(script, argv, python))[1]}:
            assert time.monotonic() < end, f"somebody uses this machine: {found}"
        return found

    def _verdict(self, script: str, argv: Sequence[str], python: str) -> tuple[int, list[str]]:
        done = self.run(script, *argv, python=python)
        assert done.returncode in {0, 1}, done.stderr
        found = json.loads(done.stdout)
        assert found["verdict"] == ("DO NOT RUN" if done.returncode else "SAFE TO RUN")
        assert bool(found["why"]) == bool(done.returncode)
        return done.returncode, found["reasons"]


@pytest.fixture
def tree(tmp_path: Path, fake_nvml: FakeNvml) -> Iterator[Tree]:
    """All is well here: no user is logged in, the GPU rests, the unit is enabled."""
    layout, programs = Layout(tmp_path / "opt"), tmp_path / "bin"
    layout.create()
    programs.mkdir()
    shutil.copytree(DATA / "agent", layout.agent, dirs_exist_ok=True)
    body = files.dev_config("n1", "http://127.0.0.1:8080")
    del body["guard_sources"]
    devices = tmp_path / "input"
    devices.mkdir()
    body["input_socket"] = str(tmp_path / "input.sock")
    layout.config_file.write_text(yaml.safe_dump({**body, "capabilities": {"gpu": True}}))
    runtime = files.dev_runtime()
    runtime["safety"]["idle_required_minutes"] = 0  # tests are made in terminals
    layout.runtime_file.write_text(yaml.safe_dump(runtime))
    secret = {"enrolment_secret": "s", "control_public_keys": ["k"]}
    (layout.agent / "enrolment.json").write_text(json.dumps(secret))
    env = {**os.environ, **fake_nvml.env, "PATH": f"{programs}:/usr/bin:/bin"}
    with FakeLogind(tmp_path) as logind, in_a_thread(tmp_path / "input.sock", devices):
        env["DBUS_SYSTEM_BUS_ADDRESS"] = logind.address
        found = Tree(layout, programs, env, logind)
        found.program("systemctl", "echo enabled")
        yield found


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
    "NVML is missing": (lambda tree, _: no_nvml(tree), "blind_gpu"),
    "no GPU is there": (lambda _, nvml: nvml.show(""), "blind_gpu"),
    "a bad runtime.yaml": (
        lambda tree, _: tree.layout.runtime_file.write_text("automation: 3"),
        "failed",
    ),
    "no config.yaml": (lambda tree, _: tree.layout.config_file.unlink(), "failed"),
}


def no_nvml(tree: Tree) -> None:
    """A library that cannot be loaded, found first whatever the machine has."""
    (tree.programs / "libnvidia-ml.so.1").touch()
    tree.env["LD_LIBRARY_PATH"] = str(tree.programs)


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


def rae_node(tree: Tree, *argv: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "rae_node", *argv, "--root", str(tree.layout.root)]
    return subprocess.run(
        command, env=tree.env, capture_output=True, text=True, timeout=60, check=False
    )


def test_the_report_is_word_for_word_when_everything_holds(tree: Tree) -> None:
    """Contract: B8."""
    done = rae_node(tree, "report")
    assert (done.returncode, done.stdout, done.stderr) == (0, READY, "")


Change = Callable[[Tree], object]
FAILING: dict[str, tuple[Change, str, str]] = {
    "automation is off": (
        lambda tree: tree.set("runtime.yaml", "automation", "enabled", to=False),
        "Automation enabled: NO", "automation.enabled",
    ),
    "auto_start is off": (
        lambda tree: tree.set("runtime.yaml", "automation", "auto_start", to=False),
        "Auto-start on boot: NO", "auto_start",
    ),
    "the unit is disabled": (
        lambda tree: tree.program("systemctl", "echo disabled; exit 1"),
        "Auto-start on boot: NO", "systemctl enable rae-node.service",
    ),
    "no source looks for users": (
        lambda tree: tree.set("runtime.yaml", "safety", "detect_active_user", to=False),
        "User activity protection: INACTIVE", "detect_active_user",
    ),
    "a source is left out": (
        lambda tree: tree.leave_out("tty"),
        "User activity protection: INACTIVE", "leaves out tty",
    ),
    "input is left out": (
        lambda tree: tree.leave_out("input"),
        "User activity protection: INACTIVE", "leaves out input",
    ),
    "logind is blind": (
        lambda tree: tree.logind.end(),
        "User activity protection: INACTIVE", "systemd-logind",
    ),
    "input is blind": (
        lambda tree: tree.set("config.yaml", "input_socket", to="/nowhere"),
        "User activity protection: INACTIVE", "systemctl status rae-input",
    ),
    "the GPU is left out": (
        lambda tree: tree.leave_out("gpu"),
        "GPU protection: INACTIVE", "leaves out gpu",
    ),
    "the load is left out": (
        lambda tree: tree.leave_out("load"),
        "Safe for unattended operation: NO", "leaves out load",
    ),
    "no user can say that the secret is there": (
        lambda tree: tree.set("config.yaml", "enrolment_file", to="credential:enrolment"),
        "Safe for unattended operation: NO", "start it",
    ),
    "NVML is missing": (no_nvml, "GPU protection: INACTIVE", "libnvidia-ml.so.1"),
    "the isolation is too weak": (  # as root and as a user: units are only on hosts that have them
        lambda tree: tree.set("config.yaml", "min_isolation", to="unit"),
        "Safe for unattended operation: NO", "min_isolation",
    ),
    "it is not enrolled": (
        lambda tree: (tree.layout.agent / "enrolment.json").unlink(),
        "Safe for unattended operation: NO", "raectl nodes enrol",
    ),
    "a file is wrong": (
        lambda tree: tree.layout.runtime_file.write_text("{}"),
        "GPU protection: INACTIVE", "runtime.yaml",
    ),
}  # fmt: skip


@pytest.mark.parametrize("failing", FAILING)
def test_the_report_refuses_when_one_thing_does_not_hold(tree: Tree, failing: str) -> None:
    """Contract: B8."""
    change, line, words = FAILING[failing]
    change(tree)
    done = rae_node(tree, "report")
    shown, _, wrong = done.stdout.partition("\n\nFAILURE REPORT\n")
    assert done.returncode == 1 and line in shown.splitlines()
    assert words in wrong and "READY" not in done.stdout
    assert "Safe for unattended operation: NO" in shown.splitlines()


def test_the_report_names_each_blind_source_on_its_own_line(tree: Tree) -> None:
    """Contract: B8."""
    tree.logind.end()
    no_nvml(tree)
    done = rae_node(tree, "report").stdout.partition("FAILURE REPORT\n")[2].splitlines()
    user = [line for line in done if line.startswith("User activity protection")]
    gpu = [line for line in done if line.startswith("GPU protection")]
    assert [len(user), len(gpu)] == [1, 1]
    assert "systemd-logind" in user[0] and "libnvidia-ml.so.1" in gpu[0]


def test_a_machine_that_declares_no_gpu_and_shows_none_counts_as_protected(tree: Tree) -> None:
    """Contract: B8."""
    no_nvml(tree)
    tree.set("config.yaml", "capabilities", "gpu", to=False)
    shown = rae_node(tree, "report").stdout
    assert ("GPU protection: ACTIVE" in shown) is not bool(nvidia_gpus(PCI_DEVICES))


def test_an_agent_that_holds_its_lock_and_does_not_answer_is_not_safe(tree: Tree) -> None:
    """Contract: B8."""
    with (tree.layout.run / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        lines = report.collect(tree.layout, reader=lambda: "enabled")
    assert "does not answer" in report.rendered(lines)


def test_an_agent_that_runs_proves_a_secret_that_only_it_can_read(
    make_rig: MakeRig, layout: Layout
) -> None:
    """Contract: B8."""
    body = {**files.dev_config("n1", "http://127.0.0.1:1"), "enrolment_file": "env:NODE_SECRET"}
    layout.config_file.write_text(yaml.safe_dump(body))
    layout.runtime_file.write_text(yaml.safe_dump(files.dev_runtime()))
    make_rig()  # it answers at the socket

    def told() -> bool:
        lines = report.collect(layout, reader=lambda: "enabled")
        return any("env:NODE_SECRET" in problem for line in lines for problem in line.problems)

    assert told()
    with (layout.run / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert not told()


def test_without_systemd_nothing_starts_at_boot(tree: Tree) -> None:
    """Contract: B8."""

    def absent() -> str:
        raise NodeError("blind", "systemctl cannot be asked")

    lines = report.collect(tree.layout, reader=absent)
    assert (lines[1].word, lines[1].problems) == ("NO", ("systemctl cannot be asked",))
