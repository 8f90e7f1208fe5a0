"""What every run of Ansible has in common, here and in Molecule."""

from __future__ import annotations

import configparser
from pathlib import Path

import yaml

ROOT = Path(__file__).resolve().parents[3]


def test_no_playbook_opens_a_terminal_which_a_node_would_take_for_its_owner() -> None:
    ours = configparser.ConfigParser()
    ours.read(ROOT / "ansible.cfg")
    assert ours.getboolean("ssh_connection", "usetty") is False
    molecule = yaml.safe_load((ROOT / ".config/molecule/config.yml").read_text("utf-8"))
    assert molecule["ansible"]["cfg"]["ssh_connection"]["usetty"] is False
