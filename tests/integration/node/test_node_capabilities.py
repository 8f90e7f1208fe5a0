"""The probe of the machine that the tests run on."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from rae_node.config.files import NodeConfig, RuntimeConfig, dev_config, dev_runtime
from rae_node.runners.capabilities import describe, probe_machine


def node(**more: Any) -> NodeConfig:
    return NodeConfig.model_validate({**dev_config("n1", "http://127.0.0.1:1"), **more})


RUNTIME = RuntimeConfig.model_validate(dev_runtime())


def test_the_probe_of_this_machine_has_every_key(tmp_path: Path) -> None:
    """Contract: C2."""
    found = describe(node(), RUNTIME, probe_machine(5), disk=tmp_path, models=None)
    shown = json.loads(found.model_dump_json())
    assert {"node_id", "version", "memory_mb", "disk_free_mb", "gpu", "tags"} <= set(shown)
    assert shown["runners"] == ["cli", "python"] and shown["cpu"]["cores"] == os.cpu_count()
    assert shown["os"] == "linux" and shown["ram_gb"] > 0 and shown["python_version"]
