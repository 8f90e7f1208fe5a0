"""`node_ca_file`: the CA of an https control is on the node, and config.yaml names it."""

from __future__ import annotations

import json
from pathlib import Path

import yaml

from rae_node.config.files import NodeConfig
from tests.certificates import Authority
from tests.integration.ansible.role import ROLE, included, play

TASKS = [
    {"ansible.builtin.include_vars": str(ROLE / "vars" / "main.yml")},
    included("ca_file.yml"),
    {
        "ansible.builtin.copy": {
            "content": "{{ _node_config | to_json }}",
            "dest": "{{ _node_root }}/agent/config.yaml",
        }
    },
    {"ansible.builtin.meta": "end_play"},  # before the handlers: no unit is here to restart
]


def test_the_ca_comes_to_the_node_and_goes_when_it_is_not_named_any_more(tmp_path: Path) -> None:
    authority, root = Authority(tmp_path / "ca"), tmp_path / "rae-node"
    defaults = yaml.safe_load((ROLE / "defaults" / "main.yml").read_text("utf-8"))
    (root / "agent").mkdir(parents=True)
    ca_file, own = root / "agent" / "control-ca.pem", {"_node_root": str(root), "node_id": "n1"}
    own |= {"_node_endpoint": "https://control.example", "node_control_host": "n1"}

    def run(name: str, source: str) -> NodeConfig:
        variables = {**defaults, "node_ca_file": source}
        done = play(tmp_path / name, {"n1": variables}, TASKS, own)
        assert done.code == 0, done.text
        return NodeConfig.model_validate(json.loads((root / "agent" / "config.yaml").read_text()))

    assert run("with", str(authority.file)).ca_file == str(ca_file)
    assert ca_file.read_bytes() == authority.file.read_bytes()
    assert run("without", "").ca_file is None
    assert not ca_file.exists()
