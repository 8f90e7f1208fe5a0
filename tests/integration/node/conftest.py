"""Real agents and supervisors around a fake control."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from rae_node.agent.agent import Agent
from rae_node.build import DOORS
from rae_node.config import files
from rae_node.config.layout import Layout
from rae_node.config.reload import Live
from rae_node.config.tuning import Settings
from rae_node.context import AgentContext
from rae_node.guard.owner_file import OwnerFile
from rae_node.guard.sources.base import Source
from rae_node.guard.sources.pause import PauseSource
from rae_node.isolation.base import Isolation, Limits, ProcessIsolation, Spec, rlimits
from rae_node.package import DATA
from rae_node.runners.capabilities import Machine
from rae_node.runners.cli import AllowFolders
from rae_node.telemetry.journal import Journal
from rae_node.telemetry.log import EventLog
from rae_protocol.clock import SystemClock
from tests.fake_nvml import FakeNvml
from tests.integration.node.harness import FAST, FakeControl, Idle, Rig, Tree
from tests.unit.node.harness import MACHINE
from tools.fake_logind import FakeLogind
from tools.recorded_input import in_a_thread


@pytest.fixture
def make_rig(layout: Layout, quiet_log: EventLog) -> Iterator[Callable[..., Rig]]:
    made: list[Agent] = []

    def make(
        control: FakeControl | None = None,
        settings: Settings = FAST,
        runtime: dict[str, Any] | None = None,
        tasks: Sequence[Path] = (DATA / "tasks",),
        isolation: Isolation | None = None,
        machine: Machine = MACHINE,
        start: bool = True,
        sources: Sequence[Source] = (),
        sleep_block: Sequence[str] = ("/nowhere",),  # this machine may sleep
        **config: Any,
    ) -> Rig:
        control = control or FakeControl()
        body = files.dev_config("n1", "http://127.0.0.1:1")
        node = files.NodeConfig.model_validate(
            {**body, "heartbeat_interval_sec": 0.2, "ollama_url": "http://127.0.0.1:9", **config}
        )
        sections = files.dev_runtime()
        sections["safety"]["cooldown_minutes"] = 0
        sections["execution"].update(poll_interval_sec=0.2, heartbeat_interval_sec=0.2)
        for section, values in (runtime or {}).items():
            sections[section].update(values)
        owner, clock = Idle(), SystemClock()
        pause = PauseSource(layout.run / "pause.json", clock, layout.pause_file)
        checked = files.RuntimeConfig.model_validate(sections)
        live = Live(layout.config_file, layout.runtime_file, {}, node, checked)
        context = AgentContext(
            layout=layout, config=node, live=live,
            settings=settings, client=control, clock=clock,  # type: ignore[arg-type]
            isolation=isolation or ProcessIsolation(layout.root), machine=machine,
            machine_id="m",
            allowed=AllowFolders([layout.agent / "allowlist.d", DATA / "allowlist.d"]),
            task_folders=tasks, sources=(*sources, pause, owner), pause=pause, log=quiet_log,
            owner=OwnerFile(layout.owner_file), journal=Journal(layout.logs, clock),
            sleep_block=sleep_block,
        )  # fmt: skip
        agent = Agent(context, DOORS)
        made.append(agent)
        if start:
            agent.start()
        return Rig(agent, control, owner)

    yield make
    for agent in made:
        agent.context.client.fail.clear()  # type: ignore[attr-defined]
        agent.shut_down()


@pytest.fixture
def spec(layout: Layout) -> Callable[..., Spec]:
    """A supervisor's spec with a workspace of its own."""

    def make(argv: Sequence[str], *, deadline_s: float = 30.0, **limits: Any) -> Spec:
        workspace = layout.workdir / f"t{len(list(layout.workdir.iterdir()))}.1"
        (workspace / "work").mkdir(parents=True)
        (workspace / "logs").mkdir()
        base = Limits(30.0, 1 << 20, None, 10, "best-effort", 6, rlimits(1 << 26, 1 << 40))
        return Spec(
            "lease-00000001", tuple(argv), {"PATH": "/usr/bin:/bin"}, workspace / "work", workspace,
            workspace / "logs", SystemClock().boot() + deadline_s, replace(base, **limits),
        )  # fmt: skip

    return make


@pytest.fixture
def tree(tmp_path: Path, fake_nvml: FakeNvml) -> Iterator[Tree]:
    """All is well here: no user is logged in, the GPU rests, the unit is enabled."""
    layout, programs = Layout(tmp_path / "opt"), tmp_path / "bin"
    layout.create()
    programs.mkdir()
    shutil.copytree(DATA / "agent", layout.agent, dirs_exist_ok=True)
    body = files.dev_config("n1", "http://127.0.0.1:8080")
    del body["guard_sources"]
    devices = tmp_path / "input"
    devices.mkdir()
    body["input_socket"] = str(tmp_path / "input.sock")
    layout.config_file.write_text(yaml.safe_dump({**body, "capabilities": {"gpu": True}}))
    runtime = files.dev_runtime()
    runtime["safety"]["idle_required_minutes"] = 0  # tests are made in terminals
    layout.runtime_file.write_text(yaml.safe_dump(runtime))
    secret = {"enrolment_secret": "s", "control_public_keys": ["k"]}
    (layout.agent / "enrolment.json").write_text(json.dumps(secret))
    env = {**os.environ, **fake_nvml.env, "PATH": f"{programs}:/usr/bin:/bin"}
    with FakeLogind(tmp_path) as logind, in_a_thread(tmp_path / "input.sock", devices):
        env["DBUS_SYSTEM_BUS_ADDRESS"] = logind.address
        found = Tree(layout, programs, env, logind)
        found.program("systemctl", "echo enabled")
        yield found
