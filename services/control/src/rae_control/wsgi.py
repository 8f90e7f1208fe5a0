"""The serving process: gunicorn with one gevent worker that holds all long polls.

Started by `rae-control` (never by hand): `python -m rae_control.wsgi JSON`, the JSON holding
`data`, `host`, `port` (or `fd` of a listening socket), `redis_url` and `config`.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

from gunicorn.app.base import BaseApplication

log = logging.getLogger(__name__)
PR_SET_PDEATHSIG = 1
LOCK_WAIT_S = 15.0


def die_with_parent() -> None:
    """SIGKILL for this process when its parent dies: control is made to be killed."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


class Application(BaseApplication):  # type: ignore[misc]
    """gunicorn with our settings; the mesh is built in the worker, after gevent's patching."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._run = Path(settings["data"]) / "run"
        super().__init__()

    def load_config(self) -> None:
        """Hand gunicorn its settings."""
        settings = self._settings
        bind = (
            f"fd://{settings['fd']}"
            if "fd" in settings
            else f"{settings['host']}:{settings['port']}"
        )
        for name, value in {
            "bind": [bind],
            "workers": 1,
            "worker_class": "gevent",
            "worker_connections": 20_000,
            "backlog": 4096,
            "keepalive": 75,
            "timeout": 60,
            "graceful_timeout": 2,
            "control_socket_disable": True,
            "accesslog": None,
            # No proxy stands in front: SCRIPT_NAME and its like are anybody's words.
            "forwarded_allow_ips": "",
            "loglevel": "warning",
            "limit_request_line": 8190,
            "post_fork": self._post_fork,
            "worker_exit": self._worker_exit,
        }.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """Build the mesh and the Flask application (runs in the worker)."""
        from rae_control.app import create_app  # noqa: PLC0415 - only after gevent's patching
        from rae_control.config import ControlConfig  # noqa: PLC0415
        from rae_control.errors import LedgerLocked  # noqa: PLC0415
        from rae_control.keys import load_roots  # noqa: PLC0415
        from rae_control.mesh import Mesh  # noqa: PLC0415
        from rae_control.queue import RqQueue  # noqa: PLC0415
        from rae_protocol.clock import SystemClock  # noqa: PLC0415

        logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s")
        data = Path(self._settings["data"])
        roots = load_roots(data)
        config = ControlConfig.model_validate(self._settings["config"])
        end = time.monotonic() + LOCK_WAIT_S
        while True:
            try:
                mesh = Mesh(
                    data, config, SystemClock(), RqQueue(self._settings["redis_url"]), roots
                )
                break
            except LedgerLocked:
                # A worker that was just killed may need a moment to be gone.
                if time.monotonic() >= end:
                    raise
                time.sleep(0.05)
        self._mesh = mesh
        return create_app(mesh)

    def _post_fork(self, _server: Any, worker: Any) -> None:
        die_with_parent()
        (self._run / "worker.pid").write_text(str(os.getpid()), encoding="ascii")

    def _worker_exit(self, _server: Any, _worker: Any) -> None:
        mesh = getattr(self, "_mesh", None)
        if mesh is not None:
            mesh.close()


def main() -> None:
    """Serve until told to stop."""
    settings = json.loads(sys.argv[1])
    if settings.get("die_with_parent"):
        die_with_parent()
    Application(settings).run()


if __name__ == "__main__":
    main()
