"""The real agent in its unit on a booted host: credential, watchdog, tasks, sleep, models."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import yaml

from rae_node.config.files import dev_config, dev_runtime
from rae_node.package import DATA as PACKAGE_DATA
from tests.integration.lab import node
from tests.integration.lab.node import BIN, PACKAGES
from tests.lab import Host, Lab
from tests.until import until

DATA = "/opt/rae-test"
SUPERVISOR = f"""
import sys
sys.path.append("{PACKAGES}")
from rae_node.supervisor.supervisor import main
sys.exit(main())
"""
CONFIG = {
    **dev_config("n1", "http://127.0.0.1:8080"), "enrolment_file": "credential:enrolment.json",
    "guard_sources": ["load", "gpu"], "min_isolation": "unit", "llm_models": {"poet": "tiny"},
    "metrics_port": 9105,
}  # fmt: skip
AWAKE = """
import sys, time
from rae_node.agent.sleep_inhibitor import Awake
from rae_node.telemetry.log import EventLog
Awake(EventLog("n1", sys.stderr)).follow(1)
time.sleep(600)
"""


@pytest.fixture(scope="module")
def host(lab: Lab) -> Host:
    """A host with a control, and an agent as the role installs and enables it."""
    (host,) = lab.boot("agent")
    node.install(host)
    node.install_release(host, "protocol", "control", "node")
    host.run(["mkdir", DATA])
    host.copy(PACKAGE_DATA / "agent", "/opt/rae-node/agent")
    host.put("/opt/rae-node/agent/supervisor.py", SUPERVISOR)
    host.put("/opt/rae-node/agent/config.yaml", yaml.safe_dump(CONFIG))
    runtime = dev_runtime()
    runtime["safety"].update(max_cpu_percent=100, cooldown_minutes=0.01)
    host.put("/opt/rae-node/agent/runtime.yaml", yaml.safe_dump(runtime))
    host.run(["systemd-run", "--unit=control", BIN, "-m", "rae_control.cli.rae_control",
              "serve", "--dev", "--data", DATA])  # fmt: skip
    enrol = ["--json", "nodes", "enrol", "n1"]
    until(lambda: raectl(host, *enrol, check=False), "control enrols", 30, every_s=0.3)
    host.put("/etc/rae-node/enrolment.json", raectl(host, *enrol), 0o400)
    host.put("/opt/rae-node/agent/enabled", "")
    host.run(["systemctl", "start", "rae-node", "rae-ollama"])
    until(lambda: nodes(host), "it registers", 30)
    return host


def raectl(host: Host, *words: str, check: bool = True) -> str:
    program = [BIN, "-m", "rae_control.cli.raectl", "--credentials", f"{DATA}/credentials.json"]
    done = host.run([*program, *words], check=check)
    return done.stdout if done.returncode == 0 else ""


def nodes(host: Host) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads(raectl(host, "--json", "nodes", "list"))["nodes"]
    return found


def show(host: Host, unit: str, name: str) -> str:
    return host.run(["systemctl", "show", "-P", name, unit]).stdout.strip()


def events(host: Host, name: str) -> list[dict[str, Any]]:
    lines = host.unit_log("rae-node").splitlines()
    found = [json.loads(line) for line in lines if line.startswith("{")]
    return [line["attrs"] for line in found if line["event"] == name]


def processes(host: Host, unit: str) -> set[str]:
    path = Path(f"/proc/{host.leader}/root/sys/fs/cgroup/rae.slice/{unit}/cgroup.procs")
    return set(path.read_text().split()) if path.exists() else set()


def test_the_agent_works_in_its_unit_with_its_credential(host: Host) -> None:
    assert show(host, "rae-node", "SubState") == "running"
    (seen,) = nodes(host)
    why = events(host, "agent_started")[0]["why"]
    assert (seen["state"], seen["isolation"]) == ("online", "unit"), why
    said = raectl(host, "submit", "--wait", "--", "echo", "in a unit")
    assert "in a unit" in said or "succeeded" in said
    # No polkit in the lab, so no right to block: the agent logs it, and the task ran.
    assert len(events(host, "sleep_not_blocked")) == 1


def test_the_sleep_block_is_logind_s_and_ends_with_its_holder(host: Host) -> None:
    """As root, who needs no rule. Contract: B5."""

    def listed() -> bool:
        return "RAE" in host.run(["systemd-inhibit", "--list"]).stdout

    assert not listed()
    host.run(["systemd-run", "--unit=awake", "--collect", BIN, "-c", AWAKE])
    until(listed, "systemd-inhibit --list shows it")
    held = host.run(["systemd-inhibit", "--list"]).stdout
    assert "sleep" in held and "block" in held
    host.run(["systemctl", "kill", "--kill-who=main", "--signal=SIGKILL", "awake"])
    until(lambda: not listed(), "it is let go")


def test_the_owners_return_ends_the_model_runners_processes(host: Host) -> None:
    body = {"tasks": [{"task_id": "poem", "kind": "llm",
                       "params": {"prompt": "x", "role": "poet"}}]}  # fmt: skip
    host.put(f"{DATA}/poem.json", json.dumps(body["tasks"][0]))
    before = processes(host, "rae-ollama.service")
    assert len(before) == 1
    raectl(host, "submit", "--json-file", f"{DATA}/poem.json")
    until(lambda: len(processes(host, "rae-ollama.service")) > 1, "a model is loaded", 20)
    loaded = processes(host, "rae-ollama.service")
    said = host.run([BIN, "-m", "rae_node", "pause", "--root", "/opt/rae-node"]).stdout
    assert "1 task was stopped" in said
    assert not loaded & processes(host, "rae-ollama.service")
    until(lambda: len(processes(host, "rae-ollama.service")) == 1, "it comes back empty")
    (killed,) = events(host, "model_runner_killed")[-1:]
    ended = [told for told in events(host, "task_ended") if told.get("reason") == "paused"]
    assert float(ended[-1]["stopped_ms"]) >= float(killed["ms"])
    host.run([BIN, "-m", "rae_node", "resume", "--root", "/opt/rae-node"])
    raectl(host, "cancel", "poem")


def test_only_the_agent_kills_the_model_runner(host: Host) -> None:
    door = "/run/rae-task/kill-ollama.sock"
    for user in ("rae-task", "rae-ollama"):
        refused = host.run(node.as_user(user, node.relay(door)), check=False)
        assert refused.returncode != 0 and "PermissionError" in refused.stderr


def test_an_agent_that_stands_still_is_ended_by_the_watchdog(host: Host) -> None:
    drop = "/run/systemd/system/rae-node.service.d/watchdog.conf"
    host.put(drop, "[Service]\nWatchdogSec=4\nRestartSec=1\n")
    host.run(["systemctl", "daemon-reload"])
    host.run(["systemctl", "restart", "rae-node"])
    host.run(["systemctl", "kill", "--kill-who=main", "--signal=SIGSTOP", "rae-node"])
    until(lambda: show(host, "rae-node", "NRestarts") != "0", "it restarts", 30, every_s=0.3)
    until(lambda: show(host, "rae-node", "SubState") == "running", "it runs again", 30)
    host.run(["rm", drop])
    host.run(["systemctl", "daemon-reload"])
