"""The folders of a node, which the role and tmpfiles.conf both name."""

from __future__ import annotations

from pathlib import Path

import yaml

from rae_node.package import DATA

ROLE = Path(__file__).parents[3] / "roles" / "node" / "tasks" / "install.yml"
# Only the role makes these: root's configuration, and folders for files that the role copies.
OF_THE_ROLE = {"/etc/rae-node", "/opt/rae-node/agent/allowlist.d"}
# Only a host without the role needs it beforehand: the role `ollama` makes it.
OF_ANOTHER_ROLE = {"/opt/rae-node/models"}


def test_tmpfiles_conf_names_every_folder_of_the_agent_that_the_role_makes() -> None:
    tasks = yaml.safe_load(ROLE.read_text(encoding="utf-8"))
    create = next(task for task in tasks if task["name"] == "Create the directories")
    of_role = {item["path"].replace("{{ _node_root }}", "/opt/rae-node") for item in create["loop"]}
    lines = (DATA / "units" / "tmpfiles.conf").read_text(encoding="utf-8").splitlines()
    of_tmpfiles = {line.split()[1] for line in lines if line.startswith("d ")}
    assert of_role - of_tmpfiles == OF_THE_ROLE
    assert of_tmpfiles - of_role == OF_ANOTHER_ROLE
