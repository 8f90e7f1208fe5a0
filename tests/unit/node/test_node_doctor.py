"""Findings of `rae-node doctor`: a test for every line that can fail."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from rae_node.config import files
from rae_node.config.files import NodeConfig
from rae_node.diagnostics import rules
from rae_node.diagnostics.rules import Finding, Owned
from rae_node.guard.policy import Reading
from rae_node.host.nvml import Gpu
from rae_protocol.errors import Unreachable

CARD = Gpu("NVIDIA GeForce RTX 4080", 16376, "GPU-1", "550", "12.4")
HERE, PRIVATE = Path("/x/run"), Path("/x/spool")
MINE = Owned(1000, 0o700, True)


def node(**fields: Any) -> NodeConfig:
    return NodeConfig.model_validate({**files.dev_config("n1", "http://127.0.0.1:1"), **fields})


def fails(finding: Finding, *words: str) -> None:
    """It fails, says these words, and tells how to fix it."""
    assert finding.state == "FAIL", finding
    assert finding.what and finding.fix
    assert all(word in f"{finding.what} {finding.fix}" for word in words), finding


ROLES = node(capabilities={"llm": ["python-specialist"]})
FAILING: dict[str, tuple[Finding, tuple[str, ...]]] = {
    "an old Python": (rules.python((3, 9, 2)), ("3.9.2", "3.10")),
    "a missing folder": (rules.folder(PRIVATE, None, 7, 7, True), ("missing", "install -d -m 700")),
    "a stranger's folder": (
        rules.folder(HERE, replace(MINE, uid=5), 7, 7, False), ("uid 5", "chown 7 /x/run"),
    ),
    "root's spool": (rules.folder(PRIVATE, replace(MINE, uid=0), 7, 7, True), ("chown 7",)),
    "an open spool": (
        rules.folder(PRIVATE, replace(MINE, mode=0o755), 1000, 1000, True), ("0755", "chmod 700"),
    ),
    "a folder for everybody": (
        rules.folder(HERE, replace(MINE, mode=0o777), 1000, 1000, False), ("chmod o-w",),
    ),
    "a read-only folder": (
        rules.folder(HERE, replace(MINE, writable=False), 1000, 0, False), ("read-write",),
    ),
    "no enrolment": (rules.secret(HERE, None, 7, ""), ("raectl nodes enrol",)),
    "a stranger's secret": (rules.secret(HERE, MINE, 7, ""), ("chown 7 /x/run",)),
    "a readable secret": (
        rules.secret(HERE, replace(MINE, mode=0o644), 1000, ""), ("0644", "chmod 600 /x/run"),
    ),
    "an empty enrolment": (rules.secret(HERE, MINE, 1000, "it is empty"), ("it is empty",)),
    "a full disk": (rules.disk("spool", HERE, 12), ("12 MiB", "df -h /x/run")),
    "an unreadable disk": (rules.disk("spool", HERE, None), ("cannot be read",)),
    "an unknown name": (rules.control("http://c", "", [], None)[0], ("rae_endpoint",)),
    "a public address": (rules.control("http://c", "public", ["8.8.8.8"], None)[0], ("https",)),
    "a silent control": (
        rules.control("http://c", "", ["::1"], Unreachable("gone"))[1], ("gone", "tailscale"),
    ),
    "a wrong clock": (rules.clock(-61), ("-61 s", "set-ntp")),
    "weak isolation": (rules.isolation("process", "no", "unit"), ("min_isolation", "no task")),
    "a folder that no box shows": (
        rules.not_shown("a box cannot show /root; move the tasks"), ("/root", "move the tasks"),
    ),
    "max_user_namespaces": (
        rules.namespaces({"/proc/sys/user/max_user_namespaces": "0\n"}, True),
        ("sysctl -w user.max_user_namespaces=10000",),
    ),
    "userns_clone": (
        rules.namespaces({"/proc/sys/kernel/unprivileged_userns_clone": "0\n"}, True),
        ("sysctl -w kernel.unprivileged_userns_clone=1",),
    ),
    "AppArmor": (
        rules.namespaces({"/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1\n"}, True),
        ("AppArmor profile",),
    ),
    "a silent NVML": (rules.gpu(None, 1, None), ("1 on the bus", "nvidia-smi")),
    "a declared GPU": (rules.gpu(True, 0, ()), ("gpu: true", "nvidia-smi")),
    "a blind source": (
        rules.source("tty", Reading("tty", None), "it hangs"), ("it hangs", "no work"),
    ),
    "a blind measure": (
        rules.source("gpu", Reading("gpu", measures={"vram_gb": None}), ""), ("blind",),
    ),
    "no Ollama": (rules.models(ROLES, 14, None)[0], ("11435", "python-specialist", "rae-ollama")),
    "no model": (
        rules.models(ROLES, 14, ["llama3:latest"])[1],
        ("lacks deepseek-coder:6.7b", "ollama_models", "provision-node.yml", "llama3:latest"),
    ),
    "no model on a development node": (
        rules.models(ROLES, 24, [], dev=True)[1],
        ("OLLAMA_HOST=127.0.0.1:11435 ollama pull deepseek-coder:6.7b",),
    ),
    "an unmapped role": (
        rules.models(node(capabilities={"llm": ["poet"]}), 14, [])[1], ("llm_models", "poet"),
    ),
    "an open task file": (rules.trusted(["/t.py can be written"]), ("/t.py", "chmod go-w")),
    "a silent agent": (rules.agent(True, "no answer"), ("no answer", "log")),
    "a disabled unit": (rules.unit("disabled", "u", False), ("systemctl enable u",)),
}  # fmt: skip
# Ubuntu 24.04, with what the node role brings there.
PROFILED = {
    "/proc/sys/kernel/apparmor_restrict_unprivileged_userns": "1\n",
    "/etc/apparmor.d/rae-task": "profile rae-task flags=(unconfined) {",
}


@pytest.mark.parametrize("what", FAILING)
def test_each_failing_line_says_why_and_how_to_fix_it(what: str) -> None:
    finding, words = FAILING[what]
    fails(finding, *words)


def test_what_is_right_or_cannot_be_helped_does_not_fail() -> None:
    right = [
        rules.python((3, 10, 0)), rules.folder(PRIVATE, MINE, 1000, 1000, True),
        rules.secret(HERE, MINE, 1000, ""), rules.secret(HERE, Owned(0, 0o640, False), 7, ""),
        rules.disk("spool", HERE, 1024), rules.clock(60), rules.isolation("unit", "", "bubblewrap"),
        rules.namespaces({}, True), rules.namespaces(PROFILED, True),
        rules.cgroup("cpuset cpu io memory pids"), rules.gpu(None, 0, None),
        rules.gpu(False, 2, None), rules.gpu(True, 1, [CARD]),
        rules.trusted([]), rules.agent(True, ""), rules.unit("enabled", "u", False),
        rules.source("gpu", Reading("gpu", True, "foreign_gpu_process"), ""),
        *rules.models(ROLES, 14, ["deepseek-coder:6.7b"]),
        *rules.control("https://c", "", ["1.1"], None),
    ]  # fmt: skip
    assert [one for one in right if one.state != "ok"] == []
    notes = [
        rules.namespaces({"/proc/sys/user/max_user_namespaces": "0"}, False), rules.cgroup(None),
        rules.source("tty", None, ""), rules.unit("", "u", True), *rules.models(node(), 14, None),
        *rules.models(ROLES, 14, None, lent=False),
    ]  # fmt: skip
    assert {one.state for one in notes} == {"note"}


def test_the_missing_memory_controller_is_named_with_what_stands_in() -> None:
    found = rules.cgroup("cpu io pids")
    assert found.state == "note"
    assert "no memory controller" in found.what and "E_OOM" in found.what


@pytest.mark.parametrize("rc", ["not_ready", "rate_limited", "internal", "retry_signed"])
def test_a_control_that_is_busy_is_no_fault_of_the_node(rc: str) -> None:
    assert rules.session(rc, "try later.").state == "note"
