"""The protocol's strict YAML, with the node's error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml

from rae_node.errors import ConfigError
from rae_protocol import yamlfile as strict


def read_yaml(file: Path) -> Any:
    """What is in a file. Raises ConfigError."""
    return parse_yaml(file)[0]


def parse_yaml(file: Path) -> tuple[Any, yaml.Node | None]:
    """What is in a file, and its tree for `line_of`. Raises ConfigError."""
    try:
        return strict.parse_yaml(file)
    except strict.BadFile as error:
        raise ConfigError(error.message) from error
