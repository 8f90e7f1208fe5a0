"""`rae-control serve` as its unit starts it: becomes gunicorn, with secrets from files alone."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from urllib.parse import parse_qs, urlsplit

from rae_control.auth import credentials
from rae_control.auth.root_keys import load_roots
from rae_control.config import ControlConfig
from rae_control.errors import ConfigError
from rae_control.ledger.sqlite import refuse_unfinished
from rae_control.server import sockets
from rae_control.server.tls import Pair
from rae_control.storage.files import close_to_others
from rae_protocol.folders import make_folder


def become_server(data: Path, config: ControlConfig, redis_url: str) -> int:
    """Check what can be checked, then be gunicorn's arbiter. Raises ControlError."""
    secrets = credentials.folder()
    load_roots(secrets, make=False)
    credentials.redis_password(secrets)
    _refuse_password(redis_url)
    data = data.absolute()
    make_folder(data, 0o700)
    make_folder(data / "run", 0o700)
    close_to_others(data)
    refuse_unfinished(data)
    pair = Pair.of(config)
    if pair is not None:
        pair.context()
    tls_port = None if pair is None else config.tls_port
    fds = sockets.listeners(os.environ, os.getpid(), tls_port)
    credentials.keep_tokens(data, credentials.tokens(secrets))
    (data / "run" / "redis.url").write_text(redis_url, encoding="utf-8")
    settings = {
        "data": str(data), "fds": fds, "redis_url": redis_url, "credentials": str(secrets),
        "config": config.model_dump(),
        # Not for gunicorn itself, which says READY before anything is built.
        "notify": os.environ.pop("NOTIFY_SOCKET", None),
    }  # fmt: skip
    # The same process: it stays the one that systemd watches.
    os.execv(  # noqa: S606
        sys.executable,
        [sys.executable, "-I", "-m", "rae_control.server.gunicorn_app", json.dumps(settings)],
    )


def _refuse_password(url: str) -> None:
    parts = urlsplit(url)
    if parts.password or "password" in parse_qs(parts.query):
        raise ConfigError(
            "--redis holds a password, which everybody on this host can read; put it into the"
            f" credential {credentials.PASSWORD}"
        )
