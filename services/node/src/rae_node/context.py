"""Shared dependencies of the agent; immutable except `runtime`."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from rae_node.config.files import NodeConfig, RuntimeConfig
from rae_node.config.layout import Layout
from rae_node.config.reload import Live
from rae_node.config.tuning import Settings
from rae_node.guard.owner_file import OwnerFile
from rae_node.guard.sources.base import Source
from rae_node.guard.sources.pause import PauseSource
from rae_node.isolation.base import Isolation
from rae_node.runners.capabilities import Machine
from rae_node.runners.cli import AllowFolders
from rae_node.telemetry.journal import Journal
from rae_node.telemetry.log import EventLog
from rae_protocol.clock import Clock
from rae_protocol.node_client import NodeClient

# The program lives as long as its input is open: until we close it, or are dead.
SLEEP_BLOCK = ("systemd-inhibit", "--what=sleep", "--mode=block", "--who=RAE",
           "--why=A task runs; the owner's return ends it", "cat")  # fmt: skip


@dataclass(frozen=True, slots=True)
class AgentContext:
    """Configuration files, the machine, and adapters to what is outside the process."""

    layout: Layout
    config: NodeConfig
    live: Live
    settings: Settings
    client: NodeClient
    clock: Clock
    isolation: Isolation
    machine: Machine
    machine_id: str
    allowed: AllowFolders
    task_folders: Sequence[Path]
    sources: Sequence[Source]
    pause: PauseSource
    log: EventLog
    owner: OwnerFile
    journal: Journal
    sleep_block: Sequence[str] = SLEEP_BLOCK
    wake: threading.Event = field(default_factory=threading.Event)  # the guard looks at once

    @property
    def runtime(self) -> RuntimeConfig:
        """`runtime.yaml` as it holds now: ask each time."""
        return self.live.runtime
