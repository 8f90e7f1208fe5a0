"""From files and options to a ready agent: the only place that knows every part."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rae_node import config as files
from rae_node.agent import Agent, Outfit
from rae_node.capabilities import ask_ollama, describe, probe_machine
from rae_node.clock import SystemClock
from rae_node.config import NodeConfig, RuntimeConfig
from rae_node.guard.sources.load import LoadSource
from rae_node.guard.sources.pause import PauseSource
from rae_node.isolation import ProcessIsolation
from rae_node.log import EventLog
from rae_node.paths import Layout
from rae_node.runners.allowlist import AllowList, load_allowlist
from rae_node.settings import Settings, apply_settings
from rae_node.startup import (
    AgentLock,
    end_predecessors,
    enrol_dev,
    machine_id,
    read_credentials,
    read_enrolment,
)
from rae_protocol.node_client import NodeClient

PACKAGE_DATA = Path(__file__).parent / "data"


@dataclass(frozen=True, slots=True)
class Loaded:
    """A node's files, read and checked."""

    layout: Layout
    config: NodeConfig
    runtime: RuntimeConfig
    settings: Settings
    allowed: AllowList
    task_folders: tuple[Path, ...]

    @property
    def enrolment_file(self) -> Path:
        """Where the enrolment secret is."""
        own = self.config.enrolment_file
        return Path(own) if own else self.layout.agent / "enrolment.json"


def prepare_dev(data: Path, node_id: str, layout: Layout) -> None:
    """Folders, files and the enrolment of a dev node, as far as they are missing.

    Raises ConfigError, NodeError, OSError.
    """
    credentials = read_credentials(data)
    layout.create()
    config_file = layout.agent / "config.yaml"
    _write_missing(config_file, files.dev_config(node_id, str(credentials["url"])))
    _write_missing(layout.agent / "runtime.yaml", files.dev_runtime())
    _follow_url(config_file, str(credentials["url"]))
    enrol_dev(credentials, node_id, layout.agent / "enrolment.json")


def load(layout: Layout, overrides: Mapping[str, object]) -> Loaded:
    """Read and check everything below agent/. Raises ConfigError."""
    settings, rest = apply_settings(overrides)
    config, runtime = files.load_both(
        layout.agent / "config.yaml", layout.agent / "runtime.yaml", rest
    )
    own = Path(config.allowlist_dir) if config.allowlist_dir else layout.agent / "allowlist.d"
    # The owner's entries come first: the first one that accepts a command decides its caps.
    allowed = load_allowlist([own, PACKAGE_DATA / "allowlist.d"])
    paths = config.task_paths
    folders = (PACKAGE_DATA / "tasks",) if paths is None else tuple(Path(path) for path in paths)
    return Loaded(layout, config, runtime, settings, allowed, folders)


def build_agent(loaded: Loaded, log: EventLog) -> tuple[Agent, AgentLock]:
    """An agent that may start: alone, and with nothing left of an earlier one.

    Raises NodeError, OSError.
    """
    layout, config, settings = loaded.layout, loaded.config, loaded.settings
    layout.create()
    lock = AgentLock(layout, config.node_id, config.rae_endpoint)
    end_predecessors(layout, settings.predecessor_sec, log)
    enrolment = read_enrolment(loaded.enrolment_file)
    client = NodeClient(
        config.rae_endpoint,
        config.node_id,
        enrolment.secret,
        kind=enrolment.kind,
        public_keys=enrolment.public_keys,
        read_timeout_s=settings.http_timeout_sec,
    )
    clock = SystemClock()
    pause = PauseSource(layout.run / "pause.json", clock)
    outfit = Outfit(
        layout=layout,
        config=config,
        runtime=loaded.runtime,
        settings=settings,
        client=client,
        clock=clock,
        isolation=ProcessIsolation(layout.root),
        machine=probe_machine(settings.probe_timeout_sec),
        machine_id=machine_id(layout),
        allowed=loaded.allowed,
        task_folders=loaded.task_folders,
        sources=(LoadSource(settings.load_window_sec), pause),
        pause=pause,
        log=log,
    )
    return Agent(outfit), lock


def probe(config: NodeConfig, runtime: RuntimeConfig, disk: Path) -> dict[str, Any]:
    """What this node would register with."""
    machine = probe_machine(Settings().probe_timeout_sec)
    models = ask_ollama(config, 2.0)
    found = describe(config, runtime, machine, disk=disk, models=models)
    return found.model_dump(mode="json")


def read_files_for_probe(layout: Layout, node_id: str) -> tuple[NodeConfig, RuntimeConfig]:
    """The node's own files, else what a node without any would have. Raises ConfigError."""
    if (layout.agent / "config.yaml").exists():
        return files.load_both(layout.agent / "config.yaml", layout.agent / "runtime.yaml")
    return (
        NodeConfig.model_validate(files.dev_config(node_id, "http://127.0.0.1:8080")),
        RuntimeConfig.model_validate(files.dev_runtime()),
    )


def _write_missing(file: Path, content: dict[str, Any]) -> None:
    if not file.exists():
        file.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")


def _follow_url(config_file: Path, url: str) -> None:
    """A dev control takes a free port at each start: the node's file follows it."""
    config = yaml.safe_load(config_file.read_text(encoding="utf-8"))
    if isinstance(config, dict) and config.get("rae_endpoint") != url:
        config["rae_endpoint"] = url
        config_file.write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")
