"""Nothing that a playbook is trusted with is printed, or readable where it should not be."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.integration.lab.leaks import in_text, on_host
from tests.integration.lab.playbooks import Site


@pytest.fixture(scope="module")
def runs(site: Site) -> dict[str, str]:
    """What the first run of site.yml and enable-node print when they are asked for everything."""
    texts = {}
    for name in ("site", "enable-node"):
        ran = site.play(name, "-vvv")
        assert ran.returncode == 0, ran.text[-5000:]
        texts[name] = ran.text
    return texts


@pytest.fixture(scope="module")
def secrets(site: Site, runs: dict[str, str]) -> dict[str, str]:
    """Every secret of the site, by name."""
    vault = subprocess.run(
        [Path(sys.executable).parent / "ansible-vault", "view",
         f"--vault-password-file={site.password}", site.inventory / "group_vars/all/vault.yml"],
        text=True, stdout=subprocess.PIPE, timeout=60, check=True,
    ).stdout  # fmt: skip
    known = {name: word for name, word in yaml.safe_load(vault).items() if word}
    known["the vault's password"] = site.password.read_text().strip()
    hosts = yaml.safe_load((site.inventory / "hosts.yml").read_text())["all"]["children"]
    for group in ("rae_control", "rae_nodes"):
        for name, values in hosts[group]["hosts"].items():
            known[f"{name}'s key for the tailnet"] = values["lab_auth_key"]
    enrol = ["raectl", "--credentials=/etc/rae-control/credentials.json", "--json", "nodes"]
    told = site.hosts["control"].run([*enrol, "enrol", "node1"]).stdout
    known["node1's enrolment secret"] = json.loads(told)["enrolment_secret"]
    return known


def test_there_are_secrets_to_look_for(secrets: dict[str, str]) -> None:
    assert len(secrets) == 8
    assert min(len(word) for word in secrets.values()) >= 16


@pytest.mark.parametrize("name", ["site", "enable-node"])
def test_a_run_prints_no_secret_when_asked_for_everything(
    runs: dict[str, str], secrets: dict[str, str], name: str
) -> None:
    assert in_text(runs[name], secrets) == []


@pytest.mark.parametrize("name", ["control", "node1"])
def test_no_file_journal_or_process_shows_a_secret(
    site: Site, secrets: dict[str, str], name: str
) -> None:
    wrong, right = on_host(site.hosts[name], secrets)
    assert wrong == []
    # The search finds what is there: the operator's own file, and what systemd hands to services.
    assert right


def test_what_keeps_secrets_is_root_s_alone(site: Site) -> None:
    places = {
        "control": ["/etc/rae-control/credentials", "/etc/rae-control/credentials.json"],
        "node1": ["/etc/rae-node"],
    }
    for name, kept in places.items():
        listed = site.hosts[name].run(["find", *kept, "-printf", "%u %m %y %p\n"]).stdout
        for line in listed.splitlines():
            assert line.startswith(("root 400 f", "root 700 d")), line
