"""The line that the guard prints lets the program rest, once its owner adds it to owner.yaml."""

from __future__ import annotations

import re
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import pytest

from rae_node.build import build_sources
from rae_node.config.files import NodeConfig, RuntimeConfig, dev_config, dev_runtime
from rae_node.config.layout import Layout
from rae_node.config.tuning import Settings
from rae_node.guard.owner_file import OwnerFile
from rae_node.guard.policy import Reading
from rae_node.host.nvml import NvmlChild
from rae_protocol.clock import SystemClock
from tests.fake_nvml import GPU, FakeNvml


@pytest.mark.parametrize("listed", ["", "gpu_may_rest: [firefox]\n"])
def test_the_printed_line_works_as_it_is_printed(
    layout: Layout,
    fake_nvml: FakeNvml,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    listed: str,
) -> None:
    for name, value in fake_nvml.env.items():
        monkeypatch.setenv(name, value)
    layout.agent.chmod(0o755)
    file = layout.owner_file
    file.write_text(listed)
    file.chmod(0o644)
    config = NodeConfig.model_validate(dev_config("n1", "http://127.0.0.1:1"))
    runtime = RuntimeConfig.model_validate(dev_runtime())
    program = tmp_path / "a browser"
    program.symlink_to(sys.executable)
    command = [program, "-c", "input()"]
    with closing(NvmlChild()) as nvml, subprocess.Popen(command, stdin=subprocess.PIPE) as browser:
        fake_nvml.show(GPU, f"graphics 0 {browser.pid} 300 1")
        source = build_sources(
            config, lambda: runtime, Settings(), SystemClock(), layout,
            owner=OwnerFile(file), names=("gpu",), nvml=nvml, ours=frozenset,
        )["gpu"]  # fmt: skip
        found: Reading = source.read()
        assert (found.present, found.code) == (True, "foreign_gpu_process")
        (cause,) = found.holders
        assert "a browser" in cause.who and cause.ends.endswith(str(file))
        line = re.search(
            r'(?:add|change gpu_may_rest to) "(gpu_may_rest: .*)" (?:to|in) ', cause.ends
        )
        assert line is not None, cause.ends
        file.write_text(line[1] + "\n")
        assert not source.read().present
        fake_nvml.show("gpu GPU-0 16384 300 90", f"graphics 0 {browser.pid} 300 90")
        assert source.read().code == "gpu_in_use", "consent is for rest alone"
        browser.communicate(b"\n")
