"""The automation report: its words when all holds, and what makes it refuse."""

from __future__ import annotations

import fcntl
import subprocess
import sys
from collections.abc import Callable

import pytest
import yaml

from rae_node.config import files
from rae_node.config.layout import Layout
from rae_node.diagnostics import report
from rae_node.diagnostics.findings import bad
from rae_node.errors import NodeError
from rae_node.guard.sources.gpu import PCI_DEVICES, nvidia_gpus
from tests.integration.node.harness import MakeRig, Tree

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
    "NVML is missing": (Tree.without_nvml, "GPU protection: INACTIVE", "libnvidia-ml.so.1"),
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
    tree.without_nvml()
    done = rae_node(tree, "report").stdout.partition("FAILURE REPORT\n")[2].splitlines()
    user = [line for line in done if line.startswith("User activity protection")]
    gpu = [line for line in done if line.startswith("GPU protection")]
    assert [len(user), len(gpu)] == [1, 1]
    assert "systemd-logind" in user[0] and "libnvidia-ml.so.1" in gpu[0]


def test_a_machine_that_declares_no_gpu_and_shows_none_counts_as_protected(tree: Tree) -> None:
    """Contract: B8."""
    tree.without_nvml()
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

    def named() -> bool:
        lines = report.collect(layout, reader=lambda: "enabled")
        return any("env:NODE_SECRET" in line.what for line in lines)

    assert named()
    with (layout.run / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        assert not named()


def test_without_systemd_nothing_starts_at_boot(tree: Tree) -> None:
    """Contract: B8."""

    def absent() -> str:
        raise NodeError("blind", "systemctl cannot be asked")

    lines = report.collect(tree.layout, reader=absent)
    assert bad("Auto-start on boot", "systemctl cannot be asked") in lines
    assert "Auto-start on boot: NO" in report.rendered(lines)
