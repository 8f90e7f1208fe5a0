"""Nothing that a playbook is trusted with is printed, or readable where it should not be."""

from __future__ import annotations

from collections.abc import Mapping

import pytest
import yaml

from tests.e2e.leaks import in_text, on_host
from tests.e2e.site import NODES, Site
from tests.lab.lab import VAULT_PASSWORD

HOSTS = ("control", *NODES)


@pytest.fixture(scope="module")
def secrets(lent: Site) -> Mapping[str, str]:
    """Every secret of the site, by name."""
    known = {
        name: word for name, word in lent.variables.items() if name.startswith("vault_") and word
    }
    known["the vault's password"] = (lent.lab.folder / VAULT_PASSWORD).read_text().strip()
    groups = yaml.safe_load(lent.inventory.read_text())["all"]["children"].values()
    for name, values in ((name, of) for group in groups for name, of in group["hosts"].items()):
        if name in HOSTS:
            known[f"{name}'s key for the tailnet"] = values["lab_auth_key"]
    for name in NODES:
        told = lent.raectl("nodes", "enrol", name)
        known[f"{name}'s enrolment secret"] = told["enrolment_secret"]
    return known


def test_there_are_secrets_to_look_for(secrets: Mapping[str, str]) -> None:
    assert len(secrets) == 4 + 1 + 3 + 2
    assert min(len(word) for word in secrets.values()) >= 16


def test_the_site_s_first_run_prints_no_secret_when_asked_for_everything(
    lent: Site, secrets: Mapping[str, str]
) -> None:
    assert "ESTABLISH SSH CONNECTION" in lent.said["default"], "it was asked for everything"
    assert in_text(lent.said["default"], secrets) == []


def test_lending_a_node_prints_no_secret_when_asked_for_everything(
    lent: Site, secrets: Mapping[str, str]
) -> None:
    lent.playbook("disable-node", "--limit=node1")
    ran = lent.playbook("enable-node", "--limit=node1", "-vvv")
    assert "READY FOR CENTRAL CONTROL" in ran.stdout
    assert in_text(ran.stdout + ran.stderr, secrets) == []


@pytest.mark.parametrize("name", HOSTS)
def test_no_file_journal_or_process_shows_a_secret(
    lent: Site, secrets: Mapping[str, str], name: str
) -> None:
    wrong, right = on_host(lent.lab.hosts[name], secrets)
    assert wrong == []
    assert right, "the search finds what systemd hands to services"


def test_what_keeps_secrets_is_root_s_alone(lent: Site) -> None:
    places = {
        "control": ["/etc/rae-control/credentials", "/etc/rae-control/credentials.json"],
        "node1": ["/etc/rae-node"],
    }
    for name, kept in places.items():
        listed = lent.lab.hosts[name].run(["find", *kept, "-printf", "%u %m %y %p\n"]).stdout
        for line in listed.splitlines():
            assert line.startswith(("root 400 f", "root 700 d")), line


def test_looking_at_a_lent_node_is_no_owner_s_presence(lent: Site) -> None:
    """Contract: B2."""
    node = lent.lab.hosts["node1"]
    lent.eventually(
        "node1 works", lambda: node.run(["rae-node", "status"]).stdout.startswith("ready")
    )
    for name in ("status", "enable-node"):
        lent.playbook(name)
        assert node.run(["rae-node", "status"]).stdout.startswith("ready for tasks")
