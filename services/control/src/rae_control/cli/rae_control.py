"""`rae-control`: run control, as a service or without any installation; look after its ledger."""

from __future__ import annotations

import argparse
import contextlib
import errno
import json
import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import quote

from rae_control import __version__
from rae_control.auth.credentials import Token, keep_tokens
from rae_control.auth.root_keys import load_roots
from rae_control.cli import maintenance
from rae_control.config import ControlConfig, load_config
from rae_control.errors import ConfigError, ControlError, DiskFull
from rae_control.ledger.sqlite import refuse_unfinished
from rae_control.queue.dev_redis import arguments, find_server, socket_path
from rae_control.server.gunicorn_app import die_with_parent
from rae_control.server.production import become_server
from rae_control.server.tls import Pair
from rae_control.storage.files import FOLDERS, close_to_others
from rae_protocol.errors import in_words
from rae_protocol.folders import make_folder
from rae_protocol.signing import EnvelopeSigner
from rae_protocol.terminal import complain, run_program, say

START_WAIT_S = 20.0
RESTART_PAUSE_S, RESTART_PAUSE_MAX_S = 0.2, 10.0

EPILOG = """exit codes: 0 stopped on request or all is well, 1 failed or something is wrong, 2 wrong
usage or setting, 3 the data folder is served by another process, 4 a newer version wrote the
ledger, 6 no Redis server found, 7 the ledger is damaged, 8 the backup is damaged, 9 the disk is
full, 10 the system does not let the ledger be used, 11 a restore has to be run again, 12 a
chore failed, 141 the output's reader has gone"""


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point of `rae-control`."""
    return run_program("rae-control", lambda: _main(argv))


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="rae-control", description="The control host of RAE Mesh.", epilog=EPILOG
    )
    parser.add_argument("--version", action="version", version=__version__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    serve = verbs.add_parser("serve", help="serve the API: as a service, or with --dev on loopback")
    serve.add_argument(
        "--dev", action="store_true", help="no installation: all of it under --data, Redis too"
    )
    serve.add_argument("--redis", metavar="URL", help="of a service: unix:///SOCKET?username=NAME")
    serve.add_argument("--data", type=_folder, required=True, help="for ledger, blobs and Redis")
    serve.add_argument(
        "--port", type=maintenance.port_number, help="with --dev; 0 takes a free one (default 8080)"
    )
    serve.add_argument("--config", type=Path, help="YAML file with settings")
    serve.add_argument("--set", action="append", default=[], metavar="NAME=VALUE", dest="sets",
                       help="override a setting, e.g. heartbeat_interval_s=1.5")  # fmt: skip
    serve.set_defaults(run=_serve)
    maintenance.add_verbs(verbs, _folder)
    return parser


def _main(argv: Sequence[str] | None) -> int:
    args = build_parser().parse_args(argv)
    try:
        code: int = args.run(args)
        return code
    except ControlError as error:
        complain("rae-control", str(error))
        return error.rc


def _serve(args: argparse.Namespace) -> int:
    config = load_config(args.config, args.sets)
    if bool(args.redis) == args.dev or (args.port is not None and not args.dev):
        raise ConfigError(
            "serve needs one of two options: choose --dev, which starts a Redis and accepts --port,"
            " or --redis URL (and then a socket passed by systemd, or RAE_BIND_ADDRESS and"
            " RAE_PORT)"
        )
    os.umask(0o077)  # for all that is made from here on, also by Redis and gunicorn
    try:
        if args.redis:
            return become_server(args.data, config, args.redis)
        return DevServer(args.data, 8080 if args.port is None else args.port, config).run()
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise ConfigError(f"{error.filename or args.data}: {in_words(error)}") from error
        raise DiskFull(f"the disk under {args.data} is full; free some space") from error


def _folder(text: str) -> Path:
    if not text:
        raise argparse.ArgumentTypeError("name a folder")
    return Path(text)


class DevServer:
    """Redis and gunicorn as children, started again when they die, gone when this process is."""

    def __init__(self, data: Path, port: int, config: ControlConfig) -> None:
        self._data = data.absolute()
        self._config = config
        self._port = port
        self._stopping = False
        self._children: dict[str, subprocess.Popen[bytes]] = {}

    def run(self) -> int:
        """Serve until SIGTERM or SIGINT. Raises ControlError."""
        server = find_server()
        try:
            # Private when it is ours; a folder that was there keeps its mode, our parts do not.
            make_folder(self._data, 0o700)
            for name in FOLDERS:
                make_folder(self._data / name, 0o700)
            close_to_others(self._data)
        except OSError as error:
            raise ConfigError(f"--data {self._data} cannot be used: {in_words(error)}") from error
        refuse_unfinished(self._data)
        pair = Pair.of(self._config)
        if pair is not None:
            pair.context()
        listeners = [_listen(self._port)]
        self._port = listeners[0].getsockname()[1]
        url = shown = f"http://127.0.0.1:{self._port}"
        if pair is not None:
            listeners.append(_listen(self._config.tls_port))
            shown += f" and https://127.0.0.1:{self._config.tls_port}"
        self._write_credentials(url)
        redis_socket = socket_path(self._data)
        redis_url = f"unix://{quote(os.fsencode(redis_socket))}"
        (self._data / "run" / "redis.url").write_text(redis_url, encoding="utf-8")
        self._pid("serve", os.getpid())
        fds = [listener.fileno() for listener in listeners]
        commands = {
            "redis": arguments(server, self._data, redis_socket),
            "gunicorn": self._gunicorn(redis_url, fds),
        }
        signal.signal(signal.SIGTERM, self._stop)
        signal.signal(signal.SIGINT, self._stop)
        try:
            for name, command in commands.items():
                self._start(name, command, fds)
            self._wait_ready()
            if not self._stopping:
                say(f"rae-control listens on {shown}")
            self._watch(commands, fds)
        finally:
            self._end()
            redis_socket.unlink(missing_ok=True)
            if redis_socket.parent != self._data:
                redis_socket.parent.rmdir()
            for listener in listeners:
                listener.close()
        return 0

    def _gunicorn(self, redis_url: str, fds: list[int]) -> list[str]:
        settings = {
            "data": str(self._data), "fds": fds, "redis_url": redis_url, "die_with_parent": True,
            "config": self._config.model_dump(),
        }  # fmt: skip
        return [sys.executable, "-m", "rae_control.server.gunicorn_app", json.dumps(settings)]

    def _write_credentials(self, url: str) -> None:
        """Make the tokens at the first start; keep them and the nodes afterwards."""
        path = self._data / "credentials.json"
        known: dict[str, Any] = {}
        if path.exists():
            try:
                known = dict(json.loads(path.read_text(encoding="utf-8")))
            except (ValueError, TypeError) as error:
                raise ConfigError(f"{path} is damaged; fix it, or move it away") from error
        for field in ("admin_token", "submit_token"):
            known[field] = known.get(field) or f"rae_{secrets.token_urlsafe(32)}"
        keep_tokens(self._data, {
            "admin": Token.model_construct(role="admin", token=known["admin_token"]),
            "rae": Token.model_construct(role="submit", token=known["submit_token"]),
        })  # fmt: skip
        known["url"] = url
        known["control_public_key"] = EnvelopeSigner(load_roots(self._data)[0]).public_key
        known.setdefault("nodes", {})
        text = json.dumps(known, indent=2)
        if path.exists() and path.read_text(encoding="utf-8") == text:
            return
        part = path.with_suffix(".part")
        handle = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(handle, "w", encoding="utf-8") as file:
            file.write(text)
        part.replace(path)

    def _start(self, name: str, command: list[str], fds: list[int]) -> None:
        # A program that is not ours cannot ask for the parent-death signal itself.
        first = die_with_parent if name == "redis" else None
        with (self._data / "log" / f"{name}.out").open("ab") as log:
            self._children[name] = subprocess.Popen(
                command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
                pass_fds=fds if name == "gunicorn" else (), preexec_fn=first,  # noqa: PLW1509
            )  # fmt: skip
        self._pid(name, self._children[name].pid)

    def _wait_ready(self) -> None:
        end = time.monotonic() + START_WAIT_S
        while not self._stopping:
            if self._ready():
                return
            gunicorn = self._children["gunicorn"]
            if gunicorn.poll() is not None or time.monotonic() > end:
                log = self._data / "log" / "gunicorn.out"
                tail = log.read_text(encoding="utf-8", errors="replace")[-1500:]
                raise ControlError(f"control did not start; see the end of {log}:\n{tail}")
            time.sleep(0.05)

    def _ready(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self._port), 1.0) as connection:
                connection.settimeout(1.0)
                connection.sendall(b"GET /healthz HTTP/1.0\r\n\r\n")
                return b" 200 " in connection.recv(64)
        except OSError:
            return False

    def _watch(self, commands: dict[str, list[str]], fds: list[int]) -> None:
        first = RESTART_PAUSE_S
        began, pause = dict.fromkeys(commands, time.monotonic()), dict.fromkeys(commands, first)
        again: dict[str, float] = {}
        while not self._stopping:
            now = time.monotonic()
            for name, command in commands.items():
                if self._children[name].poll() is None:
                    continue
                if name not in again:
                    # What ends itself right after its start (a full disk) is tried ever less often.
                    code, lived = self._children[name].returncode, now - began[name]
                    own = code >= 0 and lived < RESTART_PAUSE_MAX_S
                    pause[name] = min(RESTART_PAUSE_MAX_S, 2 * pause[name]) if own else first
                    again[name] = now + pause[name]
                    if name == "redis" and code > 0:
                        # It gave up by itself: over a file that it cannot read, most of all. What
                        # was in there is in the ledger, too.
                        shutil.rmtree(self._data / "redis" / "appendonlydir", ignore_errors=True)
                        complain("rae-control", "Redis gave up; it starts empty")
                elif now >= again[name]:
                    del again[name]
                    began[name] = now
                    self._start(name, command, fds)
            time.sleep(0.1)

    def _end(self) -> None:
        for name in ("gunicorn", "redis"):
            child = self._children.get(name)
            if child is None or child.poll() is not None:
                continue
            child.terminate()
            try:
                child.wait(5)
            except subprocess.TimeoutExpired:
                child.kill()
                child.wait()

    def _stop(self, _signal: int, _frame: object) -> None:
        self._stopping = True

    def _pid(self, name: str, pid: int) -> None:
        with contextlib.suppress(OSError):
            (self._data / "run" / f"{name}.pid").write_text(str(pid), encoding="ascii")


def _listen(port: int) -> socket.socket:
    # Held here, so that requests queue up in the kernel while gunicorn is started again.
    listener = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listener.bind(("127.0.0.1", port))
    except OSError as error:
        listener.close()
        raise ConfigError(
            f"port {port} is taken ({error.strerror}); choose another with --port, or 0, and for"
            " TLS another tls_port"
        ) from error
    listener.listen(4096)
    os.set_inheritable(listener.fileno(), True)
    return listener


if __name__ == "__main__":
    sys.exit(main())
