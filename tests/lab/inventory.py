"""The lab as Ansible sees it: hosts in groups, how to reach them, and what roles install there."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from tests.lab.host import Host
from tests.lab.ollama import Ollama
from tests.lab.tailnet import Tailnet

_GROUPS = {
    "control": "rae_control", "outsider": "rae_outside",
    **dict.fromkeys(("operator", "spare1", "spare2", "spare3"), "lab_other"),
}  # fmt: skip


def inventory(
    hosts: Mapping[str, Host], tailnet: Tailnet, ollama: Ollama, networks: tuple[str, str]
) -> dict[str, Any]:
    """Groups by the hosts' names: whoever is nothing else is a node."""
    children: dict[str, Any] = {
        group: {"hosts": {}} for group in ("rae_control", "rae_nodes", "rae_outside", "lab_other")
    }
    for name, host in hosts.items():
        values = {
            "ansible_host": host.address,
            "ansible_user": "root",
            "ansible_ssh_private_key_file": host.ssh_key,
            "ansible_ssh_common_args": " ".join(host.ssh_options),
            "ansible_python_interpreter": "/usr/bin/python3",
            "lab_address_v6": host.address6,
        }
        if name != "outsider":  # on the bridge, and never in the tailnet
            values["lab_auth_key"] = tailnet.key()
        children[_GROUPS.get(name, "rae_nodes")]["hosts"][name] = values
    return {"all": {"children": children, "vars": {
        "lab_bridge_v4": networks[0],
        "lab_bridge_v6": networks[1],
        "lab_tailnet_url": tailnet.url,
        "lab_reusable_key": tailnet.key(reusable=True),
        "lab_tailscale_dir": str(tailnet.programs),
        "lab_ollama_archive": str(ollama.archive),
        "lab_ollama_sha256": ollama.sha256,
        "lab_model_file": str(ollama.model),
    }}}  # fmt: skip
