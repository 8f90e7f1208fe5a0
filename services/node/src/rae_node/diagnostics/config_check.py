"""`rae-node check-config`: one file of the node, whichever it is."""

from __future__ import annotations

from pathlib import Path

from rae_node.config.files import SECTIONS, load_both, load_node_config, load_runtime
from rae_node.errors import ConfigError
from rae_node.guard.owner_file import OWNER_KEYS, load_owner, parse_owner
from rae_protocol.allowlist import Entry
from rae_protocol.yamlfile import read_yaml


def check_file(file: Path) -> str:
    """Validate a config.yaml, runtime.yaml, owner.yaml or allow-list, recognised by what is in it.

    Raises ConfigError.

    Where the other one lies beside it, both are checked together.
    """
    found = read_yaml(file, ConfigError)
    data = found.value
    if file.name == "owner.yaml" or (isinstance(data, dict) and set(map(str, data)) & OWNER_KEYS):
        in_place = file.with_name("config.yaml").exists()
        (load_owner if in_place else parse_owner)(file)
        return "owner.yaml"
    if isinstance(data, list):
        found.entries(Entry)
        return "allow-list"
    kind = "runtime.yaml" if found.settings().keys() & SECTIONS.keys() else "config.yaml"
    config, runtime = file.with_name("config.yaml"), file.with_name("runtime.yaml")
    if file.name == kind and config.exists() and runtime.exists():
        load_both(config, runtime)
    elif kind == "runtime.yaml":
        load_runtime(file)
    else:
        load_node_config(file)
    return kind
