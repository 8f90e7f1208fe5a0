"""From files and options to a ready agent: the only place that knows every part."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from rae_node.agent.agent import Agent
from rae_node.agent.doors import Doors
from rae_node.agent.startup import (
    AgentLock,
    end_predecessors,
    enrol_dev,
    machine_id,
    read_credentials,
    read_enrolment,
)
from rae_node.config import files
from rae_node.config.files import NodeConfig, RuntimeConfig, SourceName
from rae_node.config.layout import Layout, write_file
from rae_node.config.reload import Live
from rae_node.config.tuning import Settings, apply_settings
from rae_node.context import AgentContext
from rae_node.errors import ConfigError
from rae_node.guard.owner_file import OwnerFile
from rae_node.guard.owner_rules import OwnerRules
from rae_node.guard.proofs import Proofs
from rae_node.guard.sessions import REMOTE_SERVERS
from rae_node.guard.sources.base import Source
from rae_node.guard.sources.gpu import GpuSource
from rae_node.guard.sources.input import InputLink, InputSource
from rae_node.guard.sources.load import LoadSource, measure
from rae_node.guard.sources.login_bus import LoginBus
from rae_node.guard.sources.logind import LogindSource
from rae_node.guard.sources.owner import OwnerSource
from rae_node.guard.sources.pause import PauseSource
from rae_node.guard.sources.remote import RemoteSource
from rae_node.guard.sources.tty import TtySource
from rae_node.host import processes
from rae_node.host.nvml import NvmlChild
from rae_node.isolation.base import Isolation
from rae_node.isolation.bubblewrap_view import View, view_of
from rae_node.isolation.systemd_unit import strongest
from rae_node.owner.detector import Eyes
from rae_node.owner.monitor_view import open_monitor
from rae_node.owner.verbs import open_door
from rae_node.package import DATA
from rae_node.runners.capabilities import describe, probe_machine, programs_of
from rae_node.runners.cli import AllowFolders, AllowList
from rae_node.runners.llm import present_models, runner_uids
from rae_node.telemetry.journal import Journal
from rae_node.telemetry.log import EventLog, LogFile
from rae_protocol.clock import Clock, SystemClock
from rae_protocol.node_client import NodeClient
from rae_protocol.yamlfile import read_yaml

DOORS = Doors(open_door, open_monitor)


def prepare_dev(data: Path, node_id: str, layout: Layout) -> None:
    """Folders, files and the enrolment of a dev node, as far as they are missing.

    Raises ConfigError, NodeError, OSError.
    """
    credentials = read_credentials(data)
    url = str(credentials["url"])
    layout.create()
    for script in (DATA / "agent").glob("*.py"):
        shutil.copyfile(script, layout.agent / script.name)
        (layout.agent / script.name).chmod(0o644)
    if not layout.runtime_file.exists():
        _write_yaml(layout.runtime_file, files.dev_runtime())
    if not layout.config_file.exists():
        _write_yaml(layout.config_file, files.dev_config(node_id, url))
    config = read_yaml(layout.config_file, ConfigError).value
    # A dev control takes a free port at each start: the node's file follows it.
    if isinstance(config, dict) and config.get("rae_endpoint") != url:
        _write_yaml(layout.config_file, {**config, "rae_endpoint": url})
    enrol_dev(credentials, node_id, layout.agent / "enrolment.json")


def build_agent(layout: Layout, overrides: Mapping[str, object]) -> tuple[Agent, AgentLock]:
    """An agent that may start: its files are right, it is alone, and nothing of an earlier lives.

    Raises NodeError (ConfigError), OSError.
    """
    settings, rest = apply_settings(overrides)
    config, runtime = files.load_both(layout.config_file, layout.runtime_file, rest)
    allowed = allow_list(config, layout)
    log = open_log(config)
    layout.create()
    lock = AgentLock(layout, config.node_id, config.rae_endpoint)
    isolation = isolation_here(layout, config, allowed)
    if isolation.level != "process":  # as `strongest` has checked what is there now
        allowed.check_programs = lambda programs: _view(layout, config, programs).check()
    end_predecessors(layout, settings.predecessor_sec, log, isolation)
    client = NodeClient(
        config.rae_endpoint,
        config.node_id,
        ca_file=config.ca_file,
        read_timeout_s=settings.http_timeout_sec,
        **read_enrolment(config.enrolment_file or str(layout.agent / "enrolment.json"), os.environ),
    )
    clock = SystemClock()
    live = Live(layout.config_file, layout.runtime_file, rest, config, runtime)
    pause = PauseSource(layout.run / "pause.json", clock, layout.pause_file)
    wake = threading.Event()
    owner, journal = OwnerFile(layout.owner_file), Journal(layout.logs, clock)
    sources = build_sources(
        config, lambda: live.runtime, settings, clock, layout, owner=owner, wake=wake,
        note=lambda text: journal.try_write(clock.wall(), "seat", text=text),
    )  # fmt: skip
    own_rules = OwnerSource(owner, clock, ours=processes.own_pids)
    context = AgentContext(
        layout=layout,
        config=config,
        live=live,
        settings=settings,
        client=client,
        clock=clock,
        isolation=isolation,
        machine=probe_machine(settings.probe_timeout_sec),
        machine_id=machine_id(layout),
        allowed=allowed,
        task_folders=task_folders(config),
        sources=(*sources.values(), own_rules, pause),
        pause=pause,
        log=log,
        owner=owner,
        journal=journal,
        wake=wake,
    )
    return Agent(context, DOORS), lock


def isolation_here(layout: Layout, config: NodeConfig, allowed: AllowList) -> Isolation:
    """The best that works here and shows tasks what they need. Raises NodeError `not_shown`."""
    return strongest(layout, config.isolation, _view(layout, config, allowed.programs()))


def _view(layout: Layout, config: NodeConfig, programs: list[Path]) -> View:
    source = config.enrolment_file or str(layout.agent / "enrolment.json")
    secret = None if source.startswith(("env:", "credential:")) else Path(source)
    return view_of(layout, secret, programs, task_folders(config))


def task_folders(config: NodeConfig) -> list[Path]:
    """Where Python tasks lie."""
    paths = [DATA / "tasks"] if config.task_paths is None else config.task_paths
    return [Path(path).absolute() for path in paths]


def open_log(config: NodeConfig) -> EventLog:
    """The agent's log, as config.yaml wants it."""
    wanted = config.logging
    file = LogFile(wanted.path) if wanted.path else None
    return EventLog(config.node_id, level=wanted.level, as_json=wanted.as_json, file=file)


def allow_list(config: NodeConfig, layout: Layout) -> AllowFolders:
    """What cli tasks may run here. Raises ConfigError."""
    own = Path(config.allowlist_dir) if config.allowlist_dir else layout.agent / "allowlist.d"
    # The owner's entries come first: the first one that accepts a command decides its caps.
    return AllowFolders([own, DATA / "allowlist.d"])


def build_sources(
    config: NodeConfig,
    runtime: Callable[[], RuntimeConfig],
    settings: Settings,
    clock: Clock,
    layout: Layout,
    *,
    owner: OwnerFile,
    names: Sequence[SourceName] | None = None,
    nvml: NvmlChild | None = None,
    ours: Callable[[], Collection[int]] = processes.own_pids,
    wake: threading.Event | None = None,
    note: Callable[[str], None] = lambda _: None,
) -> dict[SourceName, Source]:
    """The guard's detectors: those of config.yaml, or the named ones. `ours`: our processes.

    `wake`: set when one of them has news; only an agent has it, and records proofs. `note`: gets a
    sentence for each login, lock and unlock.
    """
    news = wake.set if wake is not None else lambda: None
    # Sooner than the guard gives up: a detector that hangs is named, not only late.
    patience_s = 0.8 * settings.source_timeout_sec
    link = InputLink(Path(config.input_socket), news, patience_s=patience_s)
    bus = LoginBus(news)

    def idle_s(owners: Callable[[OwnerRules], float]) -> float:
        return max(runtime().safety.idle_required_minutes * 60, owners(owner.rules_or_strict()))

    every: dict[SourceName, Callable[[], Source]] = {
        "logind": lambda: LogindSource(
            bus.sessions,
            link=link if "input" in config.guard_sources else None,
            proofs=Proofs(layout.proofs_file, clock.wall),
            record=wake is not None,
            operators=config.operator_users,
            note=note,
            servers=REMOTE_SERVERS if "remote" in config.guard_sources else (),
        ),
        "input": lambda: InputSource(link, lambda: idle_s(lambda own: own.input_idle_s), clock),
        "tty": lambda: TtySource(
            lambda: idle_s(lambda own: own.terminal_idle_s),
            clock,
            ours=lambda device: processes.only_on_terminal(ours(), device),
        ),
        "remote": lambda: RemoteSource(bus.sessions, ours=ours),
        "load": lambda: LoadSource(settings.load_window_sec, take=lambda: measure(ours())),
        "gpu": lambda: GpuSource(
            config.capabilities.gpu,
            nvml or NvmlChild(),
            ours=ours,
            resting=lambda: owner.rules_or_strict().resting,
            owner_file=str(owner.path),
        ),
    }
    return {name: every[name]() for name in (config.guard_sources if names is None else names)}


def detector_eyes(layout: Layout) -> Eyes:
    """What `rae-node detector` looks with. Raises ConfigError."""
    config = files.load_node_config(layout.config_file)
    news, clock = threading.Event(), SystemClock()
    bus = LoginBus(news.set)
    return Eyes(
        InputLink(Path(config.input_socket), news.set), bus.sessions, bus.seats,
        Proofs(layout.proofs_file, clock.wall), clock, news,
    )  # fmt: skip


def probe(config: NodeConfig, runtime: RuntimeConfig, layout: Layout, disk: Path) -> dict[str, Any]:
    """What this node would register with. Raises ConfigError."""
    machine = probe_machine(Settings().probe_timeout_sec)
    models = present_models(config.ollama_url, 2.0, runner_uids(config.ollama_user))
    programs = programs_of(allow_list(config, layout), task_folders(config), layout.workdir)
    found = describe(config, runtime, machine, disk=disk, models=models)
    found = found.model_copy(update=programs)
    return found.model_dump(mode="json")


def read_files_for_probe(layout: Layout, node_id: str) -> tuple[NodeConfig, RuntimeConfig]:
    """The node's own files, else what a node without any would have. Raises ConfigError."""
    if layout.config_file.exists():
        return files.load_both(layout.config_file, layout.runtime_file)
    return (
        NodeConfig.model_validate(files.dev_config(node_id, "http://127.0.0.1:8080")),
        RuntimeConfig.model_validate(files.dev_runtime()),
    )


def _write_yaml(file: Path, content: dict[str, Any]) -> None:
    write_file(file, yaml.safe_dump(content, sort_keys=False))
