"""/healthz and /metrics of an agent: what its parts are at now."""

from __future__ import annotations

import contextlib
import json
import os
from pathlib import Path

from rae_node.agent.agent import Agent
from rae_node.telemetry.http import Monitor, Page
from rae_node.telemetry.metrics import CONTENT_TYPE, View, healthz, prometheus


def view(agent: Agent) -> View:
    """The node now."""
    answered, clock = agent.link.last_answer, agent.context.clock
    phases = [run.phase for run in agent.runs()]
    spooled = len(agent.spool)
    return View(
        running=phases.count("running"),
        queued=spooled + phases.count("acking") + phases.count("preparing"),
        cpu_load=_load(),
        vram_free_mb=agent.guard.vram_free_mb,
        availability=agent.guard.decision.availability,
        reasons=tuple(agent.admission.reasons()),
        spool_entries=spooled,
        spool_bytes=_bytes_below(agent.context.layout.spool),
        heartbeat_age_s=None if answered is None else clock.boot() - answered,
        clock_offset_s=agent.context.client.clock_offset_s,
        tally=agent.tally,
    )


def _bytes_below(folder: Path) -> int:
    total = 0
    for here, _, names in os.walk(folder):
        for name in names:
            with contextlib.suppress(OSError):  # delivered in this moment
                total += (Path(here) / name).stat().st_size
    return total


def _load() -> float | None:
    try:
        return round(os.getloadavg()[0], 2)
    except OSError:
        return None


def open_monitor(agent: Agent) -> Monitor | None:
    """The agent's, not yet started; None where it is switched off, or the port is taken."""
    port, log = agent.context.config.metrics_port, agent.context.log
    if not port:
        return None
    pages: dict[str, Page] = {
        "/healthz": lambda: ("application/json", json.dumps(healthz(view(agent))) + "\n"),
        "/metrics": lambda: (CONTENT_TYPE, prometheus(view(agent))),
    }
    try:
        return Monitor(port, pages, log)
    except OSError as error:
        text = f"{error.strerror}; no /healthz and /metrics, choose another metrics_port"
        log.warning("monitor_not_open", port=port, error=text)
        return None
