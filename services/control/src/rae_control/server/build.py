"""Builds what the gunicorn worker serves. Imported only there, after gevent has patched Python."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

from flask import Flask

from rae_control.auth.credentials import redis_password
from rae_control.auth.root_keys import load_roots
from rae_control.config import ControlConfig
from rae_control.errors import LedgerLocked
from rae_control.mesh.mesh import Mesh
from rae_control.queue.rq_queue import RqQueue
from rae_control.server.app import create_app
from rae_protocol.clock import SystemClock

LOCK_WAIT_S = 15.0


def build(settings: dict[str, Any]) -> tuple[Mesh, Flask]:
    """The mesh over `settings["data"]` and the application in front of it. Raises ControlError."""
    data = Path(settings["data"])
    secrets = Path(settings["credentials"]) if settings.get("credentials") else None
    roots = load_roots(secrets or data, make=secrets is None)
    config = ControlConfig.model_validate(settings["config"])
    password = redis_password(secrets)
    end = time.monotonic() + LOCK_WAIT_S
    while True:
        try:
            queue = RqQueue(settings["redis_url"], password=password)
            mesh = Mesh(data, config, SystemClock(), queue, roots)
        except LedgerLocked:
            # A worker that was just killed may need a moment to be gone.
            if time.monotonic() >= end:
                raise
            time.sleep(0.05)
        else:
            return mesh, create_app(mesh)
