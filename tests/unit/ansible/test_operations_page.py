"""docs/operations.md and the README say what playbooks and roles really have."""

from __future__ import annotations

import json
import re

import pytest
import yaml

from tools.role_readme import ROLES

ROOT = ROLES.parent
PAGE = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")
README = (ROOT / "README.md").read_text(encoding="utf-8")
VERBS = {file.stem for file in (ROOT / "playbooks").glob("*.yml")} - {"preflight"}
SOURCES = "\n".join(
    re.sub(r"\s+", " ", file.read_text(encoding="utf-8"))
    for folder in ("roles", "playbooks")
    for file in sorted((ROOT / folder).rglob("*.yml"))
)


def test_every_playbook_is_in_both_and_every_one_named_is_there() -> None:
    assert [verb for verb in sorted(VERBS) if f"{verb}.yml" not in PAGE] == []
    assert [verb for verb in sorted(VERBS) if f"`{verb}`" not in README] == []
    named = set(re.findall(r"playbooks/([a-z-]+)\.yml", PAGE + README))
    assert named - VERBS == set()


def test_every_variable_that_the_page_names_is_a_role_s() -> None:
    known = set()
    for role in ROLES.iterdir():
        known |= set(yaml.safe_load((role / "defaults" / "main.yml").read_text("utf-8")))
    roles = "|".join(role.name for role in ROLES.iterdir())
    named = set(re.findall(rf"\b((?:{roles})_[a-z0-9_]+)\b", PAGE.partition("# Part two")[0]))
    assert named - known == set()
    assert len(named) > 8


def test_the_tailnet_s_policy_is_one_and_names_no_stranger() -> None:
    policy = json.loads(PAGE.partition("```json")[2].partition("```")[0])
    owned = set(policy["tagOwners"]) | set(policy["groups"])
    for rule in policy["acls"]:
        said = {*rule["src"], *(where.rpartition(":")[0] for where in rule["dst"])}
        assert said <= owned
    # Nodes reach the API of control, and neither each other nor anybody's ssh.
    nodes = [rule["dst"] for rule in policy["acls"] if "tag:rae-node" in rule["src"]]
    assert nodes == [["tag:rae-control:8080"]]


@pytest.mark.parametrize(
    "words",
    [
        "hosts in the group rae_control",
        "cannot be reached",
        "MiB free",
        "firewall_admin_cidrs is empty",
        "ollama_archive_sha256 is missing",
        "could not join the tailnet",
        "failed under the new rules",
        "Ask the owner, then set node_owner_consents_gpu_resting",
        "control does not answer on",
        "has no agent yet",
        "does not pass",
        "is not lent:",
        "is lent, and its report above names what is not met",
    ],
)
def test_a_message_in_the_tables_is_one_that_playbooks_say(words: str) -> None:
    assert words in SOURCES
    assert words in PAGE
