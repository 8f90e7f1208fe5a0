"""The firewall's rules, rendered by Ansible itself as its play does."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml

ROLE = Path(__file__).resolve().parents[3] / "roles" / "firewall"
V4, V6 = "203.0.113.7/32", "2001:db8::7/128"
CASES: dict[str, dict[str, Any]] = {
    f"{kind}-{name}": {"firewall_kind": kind, "firewall_admin_cidrs": cidrs}
    for kind in ("control", "node")
    for name, cidrs in {"v4": [V4], "v6": [V6], "both": [V4, V6], "none": []}.items()
} | {
    "closed": {
        "firewall_kind": "control",
        "firewall_admin_cidrs": [V4],
        "firewall_tailnet_tcp_ports": [],
        "firewall_public_udp_ports": [],
        "firewall_trusted_interfaces": [],
    },
    "tls": {
        "firewall_kind": "control",
        "firewall_admin_cidrs": [V4],
        "mesh_control_tls_port": 8443,
    },
}


@pytest.fixture(scope="module")
def rules(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    """The file of each case."""
    folder = tmp_path_factory.mktemp("rules")
    known = {"mesh_control_port": 8080, "mesh_control_tls_port": 0}
    known |= yaml.safe_load((ROLE / "defaults" / "main.yml").read_text("utf-8"))
    play = {
        "hosts": "all",
        "gather_facts": False,
        "tasks": [
            {
                "ansible.builtin.template": {
                    "src": str(ROLE / "templates" / "rules.nft.j2"),
                    "dest": f"{folder}/{name}",
                    "mode": "0600",
                },
                "vars": known | case,
            }
            for name, case in CASES.items()
        ],
    }
    (folder / "play.yml").write_text(json.dumps([play]), encoding="utf-8")
    interpreter = json.dumps({"ansible_python_interpreter": sys.executable})
    done = subprocess.run(
        [Path(sys.executable).parent / "ansible-playbook", "--inventory=localhost,",
         "--connection=local", "--extra-vars", interpreter,
         folder / "play.yml"],
        env={**os.environ, "ANSIBLE_HOME": str(folder), "LC_ALL": "C.UTF-8"}, cwd=folder, text=True,
        capture_output=True, timeout=120, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr
    return {name: (folder / name).read_text(encoding="utf-8") for name in CASES}


def chain(text: str, name: str) -> str:
    found = re.search(rf"chain {name} \{{(.*?)\n\t\}}", text, re.DOTALL)
    return found[1] if found else ""


@pytest.mark.parametrize("kind", ["control", "node"])
def test_operators_reach_ssh_inside_the_tailnet_with_the_family_of_their_network(
    rules: dict[str, str], kind: str
) -> None:
    v4, v6 = f"ip saddr {{ {V4} }} tcp dport 22", f"ip6 saddr {{ {V6} }} tcp dport 22"
    found = {
        name: (v4 in chain(rules[f"{kind}-{name}"], "tailnet"),
               v6 in chain(rules[f"{kind}-{name}"], "tailnet"))
        for name in ("v4", "v6", "both", "none")
    }  # fmt: skip
    assert found == {
        "v4": (True, False), "v6": (False, True), "both": (True, True), "none": (False, False)
    }  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_only_our_table_is_touched_and_every_chain_of_strangers_ends_with_drop(
    rules: dict[str, str], name: str
) -> None:
    text = rules[name]
    assert set(re.findall(r"^(?:delete )?(table \w+ \w+)", text, re.MULTILINE)) == {
        "table inet rae"
    }
    assert "flush" not in text
    assert not re.search(r"\{\s*\}", text), "nft takes no empty set"
    for stranger in ("tailnet", "outside"):
        if chain(text, stranger):
            assert chain(text, stranger).split("\n")[-1].strip() == "drop"


def test_a_node_filters_the_tailnet_and_nothing_of_its_owner_s_networks(
    rules: dict[str, str],
) -> None:
    assert chain(rules["node-both"], "outside") == ""
    assert re.findall(r"iifname .*", chain(rules["node-both"], "prerouting")) \
        == ['iifname "tailscale0" fib daddr type local goto tailnet']  # fmt: skip
    assert "8080" not in rules["node-both"]


def test_control_drops_the_tailnet_s_addresses_from_outside_before_anything_else(
    rules: dict[str, str],
) -> None:
    lines = [line.strip() for line in chain(rules["control-both"], "outside").splitlines()]
    said = [line for line in lines if line and not line.startswith("#")]
    assert said[:2] == ["ip daddr 100.64.0.0/10 drop", "ip6 daddr fd7a:115c:a1e0::/48 drop"]
    assert f"ip saddr {{ {V4} }} accept" in said
    assert f"ip6 saddr {{ {V6} }} accept" in said


def test_what_is_not_opened_has_no_rule(rules: dict[str, str]) -> None:
    assert "tcp dport { 8080 } accept" in chain(rules["control-both"], "tailnet")
    assert "udp dport { 41641 } accept" in chain(rules["control-both"], "outside")
    assert "8080" not in rules["closed"]
    assert "41641" not in rules["closed"]


def test_the_port_of_the_api_over_tls_is_open_to_the_tailnet_where_there_is_one(
    rules: dict[str, str],
) -> None:
    assert "tcp dport { 8080, 8443 } accept" in chain(rules["tls"], "tailnet")
    assert "8443" not in chain(rules["tls"], "outside")
