"""The serving process: gunicorn with one gevent worker that holds all long polls.

Started by `rae-control` (never by hand) as `python -m rae_control.server.gunicorn_app JSON`; the
JSON holds `data`, `fds` of listening sockets, `redis_url`, `config` and the `credentials` folder,
and no secret.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import resource
import signal
import sys
from pathlib import Path
from typing import Any

from gunicorn.app.base import BaseApplication

from rae_control.config import ControlConfig
from rae_control.log import LOGGING, write_in_a_thread
from rae_control.server.tls import Pair, Tls
from rae_protocol import notify

PR_SET_PDEATHSIG = 1
SWITCH_S = 0.0005
MOST_CONNECTIONS = 20_000
# Ledger, Redis, tailscaled's socket, blobs, logs, and bodies that lie in unnamed files.
OWN_FILES = 2048


def die_with_parent() -> None:
    """SIGKILL for this process when its parent dies: control is made to be killed."""
    ctypes.CDLL(None, use_errno=True).prctl(PR_SET_PDEATHSIG, signal.SIGKILL)


def connections(files: int) -> int:
    """How many connections at once: the files that control itself needs stay free."""
    return max(16, min(MOST_CONNECTIONS, files - min(OWN_FILES, files // 2)))


def raise_limit() -> None:
    """As many open files as the system lets us have; a service manager has its own word in it."""
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    with contextlib.suppress(OSError, ValueError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))


class Application(BaseApplication):  # type: ignore[misc]
    """gunicorn with our settings; the mesh is built in the worker, after gevent's patching."""

    def __init__(self, settings: dict[str, Any]) -> None:
        self._settings = settings
        self._run = Path(settings["data"]) / "run"
        self.tls: Tls | None = None
        super().__init__()

    def load_config(self) -> None:
        """Hand gunicorn its settings."""
        for name, value in {
            "bind": [f"fd://{fd}" for fd in self._settings["fds"]],
            "workers": 1,
            "worker_class": "rae_control.server.gunicorn_worker.Worker",
            "worker_connections": connections(resource.getrlimit(resource.RLIMIT_NOFILE)[0]),
            "backlog": 4096,
            "keepalive": 75,
            "timeout": 60,
            # The arbiter's patience; the worker has less (`_post_fork`), so that it ends by itself.
            "graceful_timeout": 8,
            "control_socket_disable": True,
            "accesslog": None,
            # No proxy stands in front: SCRIPT_NAME and its like are anybody's words.
            "forwarded_allow_ips": "",
            "loglevel": "warning",
            "logconfig_dict": LOGGING,
            "limit_request_line": 8190,
            # Ours have less than 2 kB; gunicorn looks at all of an unfinished head with each piece.
            "limit_request_fields": 32,
            "limit_request_field_size": 2048,
            "post_fork": self._post_fork,
            "worker_exit": self._worker_exit,
        }.items():
            self.cfg.set(name, value)

    def load(self) -> Any:
        """Build the mesh and the Flask application (runs in the worker)."""
        from rae_control.server.build import build  # noqa: PLC0415 - only after gevent's patching

        config = ControlConfig.model_validate(self._settings["config"])
        pair = Pair.of(config)
        self.tls = None if pair is None else Tls(config.tls_port, pair)
        self._mesh, app = build(self._settings)
        return app

    def whose(self, authorization: str) -> str | None:
        """Whose token the header of a request has, if that is known."""
        found: str | None = self._mesh.auth.whose(authorization)
        return found

    def tell(self, state: str) -> None:
        """Say something to systemd."""
        notify.tell(self._settings.get("notify"), state)

    def stopping(self) -> None:
        """SIGTERM came: whoever waits for news is answered now."""
        self.tell("STOPPING=1")
        mesh = getattr(self, "_mesh", None)
        if mesh is not None:
            mesh.stopping()

    def _post_fork(self, _server: Any, worker: Any) -> None:
        die_with_parent()
        write_in_a_thread()
        # Connections at rest do not end by themselves; who waited has his answer long before.
        self.cfg.set("graceful_timeout", 1)
        # A full disk is no reason not to serve what can be read.
        with contextlib.suppress(OSError):
            (self._run / "worker.pid").write_text(str(os.getpid()), encoding="ascii")

    def _worker_exit(self, _server: Any, _worker: Any) -> None:
        mesh = getattr(self, "_mesh", None)
        if mesh is not None:
            mesh.close()


def main() -> None:
    """Serve until SIGTERM."""
    settings = json.loads(sys.argv[1])
    raise_limit()
    # A thread that computes gives way to the others, the writer's above all, after this long.
    sys.setswitchinterval(SWITCH_S)
    if settings.get("die_with_parent"):
        die_with_parent()
    Application(settings).run()


if __name__ == "__main__":
    main()
