"""Capabilities: what is measured, declared and offered."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from rae_node.config.files import NodeConfig, RuntimeConfig, dev_config, dev_runtime
from rae_node.host.nvml import Gpu
from rae_node.runners.capabilities import describe, gpu_slots, roles_of
from tests.unit.node.harness import MACHINE


def node(**more: Any) -> NodeConfig:
    return NodeConfig.model_validate({**dev_config("n1", "http://127.0.0.1:1"), **more})


RUNTIME = RuntimeConfig.model_validate(dev_runtime())
CARD = Gpu("NVIDIA RTX 4080", 16 * 1024.0, "GPU-1", "550.1", "12.4")


def test_declared_values_win_but_never_above_what_is_measured(tmp_path: Path) -> None:
    declared = {"gpu": True, "gpu_model": "RTX_4080", "vram_gb": 24, "ram_gb": 64}
    machine = MACHINE.__class__(
        **{f: getattr(MACHINE, f) for f in MACHINE.__slots__ if f != "gpus"}, gpus=(CARD,)
    )
    found = describe(node(capabilities=declared), RUNTIME, machine, disk=tmp_path, models=[])
    assert (found.gpu_model, found.vram_gb, found.ram_gb) == ("RTX_4080", 14, 8)
    assert isinstance(found.gpu, list) and found.gpu[0].vram_mb == 14 * 1024
    assert gpu_slots(node(capabilities=declared), machine) == 1


def test_without_nvml_a_gpu_is_what_the_owner_says_and_else_unknown(tmp_path: Path) -> None:
    unknown = describe(node(), RUNTIME, MACHINE, disk=tmp_path, models=None)
    assert (unknown.gpu, unknown.vram_gb, unknown.gpu_model) == (None, None, None)
    assert gpu_slots(node(), MACHINE) == 0
    declared = node(capabilities={"gpu": True, "vram_gb": 8})
    found = describe(declared, RUNTIME, MACHINE, disk=tmp_path, models=None)
    assert (found.gpu, found.vram_gb) == (True, 8) and gpu_slots(declared, MACHINE) == 1


def test_only_roles_whose_model_is_there_are_offered(tmp_path: Path) -> None:
    config = node(llm_models={"a": "one", "b": "two:7b"}, capabilities={"llm": ["a", "b", "c"]})
    found = describe(config, RUNTIME, MACHINE, disk=tmp_path, models=["one:latest"])
    assert (found.llm, found.runners) == (["a"], ["cli", "python", "llm"])


@pytest.mark.parametrize(
    ("max_vram_gb", "model"),
    [(14, "deepseek-coder:6.7b"), (19.9, "deepseek-coder:6.7b"), (20, "deepseek-coder:33b")],
)
def test_the_default_models_are_there_and_fit_into_the_memory_that_is_lent(
    tmp_path: Path, max_vram_gb: float, model: str
) -> None:
    """Contract: A11."""
    config = node(capabilities={"llm": ["python-specialist", "code-refactor"]})
    safety = RUNTIME.safety.model_copy(update={"max_vram_gb": max_vram_gb})
    runtime = RUNTIME.model_copy(update={"safety": safety})
    present = ["deepseek-coder:33b", "deepseek-coder:6.7b"]
    assert roles_of(config, max_vram_gb, present)["python-specialist"] == model
    assert roles_of(config, max_vram_gb, present[1:])["python-specialist"] == present[1]
    found = describe(config, runtime, MACHINE, disk=tmp_path, models=present[1:])
    assert found.llm == ["python-specialist", "code-refactor"]
