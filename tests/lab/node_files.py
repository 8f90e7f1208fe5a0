"""What the node role puts on a host, as files: units, rules, and the scripts in front of them."""

from __future__ import annotations

from collections.abc import Mapping

from rae_node.package import DATA

UNITS = DATA / "units"
AGENT = "/opt/rae-node/agent"
_ELSEWHERE: Mapping[str, str] = {
    "sysusers.conf": "/etc/sysusers.d/rae-node.conf",
    "tmpfiles.conf": "/etc/tmpfiles.d/rae-node.conf",
    "kill_task.py": f"{AGENT}/kill_task.py",
    "kill_ollama.py": f"{AGENT}/kill_ollama.py",
    "10-rae-node.rules": "/etc/polkit-1/rules.d/10-rae-node.rules",
    "10-rae-node.pkla": "/etc/polkit-1/localauthority/50-local.d/10-rae-node.pkla",
}
SOCKETS = sorted(file.name for file in UNITS.glob("*.socket"))


def unit_files() -> dict[str, str]:
    """By their paths on the host."""
    return {
        _ELSEWHERE.get(file.name, f"/etc/systemd/system/{file.name}"): file.read_text("utf-8")
        for file in UNITS.iterdir()
        if file.is_file()
    }


def script_files() -> dict[str, str]:
    """The agent's scripts, by their paths on the host."""
    scripts = (DATA / "agent").glob("*.py")
    return {f"{AGENT}/{file.name}": file.read_text("utf-8") for file in scripts}
