"""The verbs of `rae-control` that look after a data folder."""

from __future__ import annotations

import argparse
import os
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

from rae_control.auth.credentials import redis_password
from rae_control.config import load_config
from rae_control.errors import ConfigError
from rae_control.ledger.check import Violation
from rae_control.maintenance import chores
from rae_control.maintenance.backup import backup, check_folder, end_hold, restore
from rae_control.maintenance.doctor import examine
from rae_protocol.errors import in_words
from rae_protocol.terminal import complain, say, say_json

Folder = Callable[[str], Path]


def port_number(text: str) -> int:
    """A port on the command line."""
    if not (text.isascii() and text.isdigit() and int(text) < 65536):
        raise argparse.ArgumentTypeError("a port is a number from 0 to 65535")
    return int(text)


def add_verbs(verbs: Any, folder: Folder) -> None:
    """doctor, check, backup and restore."""

    def add(name: str, run: Callable[[argparse.Namespace], int], text: str) -> Any:
        made = verbs.add_parser(name, help=text, description=text)
        made.add_argument("--data", type=folder, default=Path("data"), help="default: ./data")
        made.set_defaults(run=run)
        return made

    made = add("doctor", _doctor, "check what control needs, and say how to fix it")
    made.add_argument("--config", type=Path, help="YAML file with settings")
    made.add_argument("--credentials", type=Path, help="a service's root.key and redis-password")
    made.add_argument("--host", default="127.0.0.1", help="where control shall listen")
    made.add_argument("--port", type=port_number, default=8080)
    made.add_argument("--polls", type=int, default=500, help="nodes that poll at once")
    made.add_argument("--json", action="store_true", help="print JSON")
    made = add("check", _check, "check ledger, blobs and logs; also while control runs")
    made.add_argument("--deep", action="store_true", help="hash every blob again")
    made.add_argument("--json", action="store_true", help="print JSON")
    made = add(
        "backup", _backup, "write ledger, blobs, logs and keys to one file; also while control runs"
    )
    made.add_argument("file", type=Path, metavar="FILE")
    made.add_argument("--force", action="store_true", help="replace FILE where it is there")
    made = add("chore", _chore, "queue one backup or one check for the worker")
    made.add_argument("chore", choices=("backup", "check"))
    made.add_argument("--config", type=Path, help="YAML file with settings")
    made.add_argument("--now", action="store_true", help="here, without the worker")
    add("worker", _worker, "run backups and checks until stopped")
    made = verbs.add_parser("check-config", help="validate a settings file")
    made.add_argument("file", type=Path, metavar="FILE")
    made.set_defaults(run=_check_config)
    made = add("restore", _restore, "restore a backup into a data folder")
    made.add_argument("file", type=Path, metavar="FILE", nargs="?")
    made.add_argument(
        "--nodes-are-dead",
        action="store_true",
        help="nothing of the lost past runs on any node: lease tasks at once; without FILE it ends"
        " the wait of an earlier restore",
    )
    made.add_argument("--force", action="store_true", help="move what is in the folder aside")
    made.add_argument(
        "--no-keys", action="store_true", help="the backup has none: a vault has them"
    )


def _doctor(args: argparse.Namespace) -> int:
    found = list(
        examine(
            args.data,
            load_config(args.config),
            host=args.host,
            port=args.port,
            polls=args.polls,
            credentials=args.credentials,
        )
    )
    if args.json:
        say_json({"findings": [asdict(item) for item in found]})
    else:
        say("\n".join(map(str, found)))
    return 0 if all(item.ok for item in found) else 1


def _chore(args: argparse.Namespace) -> int:
    config, data = load_config(args.config), args.data.absolute()
    if args.now:
        say(chores.run(args.chore, str(data), config.backup_dir, config.backup_keep))
        return 0
    where = _redis(data)
    fresh = chores.enqueue(*where, args.chore, data, config)
    said = "queued" if fresh else "already queued or running"
    if not chores.has_worker(*where):
        said += (
            f", and no worker runs; start one with `rae-control worker --data {args.data}`,"
            " or do it here with --now"
        )
    say(f"{args.chore}: {said}")
    return 0


def _worker(args: argparse.Namespace) -> int:
    chores.work(*_redis(args.data))
    return 0


def _redis(data: Path) -> tuple[str, str | None]:
    """Where the queue of a data folder is, and the password that a unit has for it."""
    named = os.environ.get("CREDENTIALS_DIRECTORY")
    try:
        url = (data / "run" / "redis.url").read_text(encoding="utf-8").strip()
    except FileNotFoundError as error:
        raise ConfigError(f"{data} has no queue yet; start control once") from error
    except OSError as error:
        raise ConfigError(f"{error.filename} cannot be read: {in_words(error)}") from error
    return url, redis_password(Path(named) if named else None)


def _check_config(args: argparse.Namespace) -> int:
    try:
        load_config(args.file)
    except ConfigError as error:
        complain("rae-control", str(error))
        return 1
    say(f"{args.file} is good")
    return 0


def _check(args: argparse.Namespace) -> int:
    return _report(check_folder(args.data, deep=args.deep), as_json=args.json)


def _backup(args: argparse.Namespace) -> int:
    if not args.force and args.file.exists():
        raise ConfigError(
            f"{args.file} is there already; name another file, or --force replaces it once the new "
            "backup is complete"
        )
    os.nice(10)  # submits go first
    try:
        count = backup(args.data, args.file)
    except OSError as error:
        raise ConfigError(f"{args.file} cannot be written: {in_words(error)}") from error
    keys = "the keys are in it"
    if not (args.data / "root.key").exists():
        keys = "what tasks read and wrote is in it. The keys are not: your vault has them"
    say(f"{args.file}: {count} files, {args.file.stat().st_size} bytes. Keep it secret: {keys}.")
    return 0


def _restore(args: argparse.Namespace) -> int:
    if args.file is None:
        return _end_hold(args)
    try:
        violations = restore(
            args.file, args.data, force=args.force, keys=not args.no_keys,
            nodes_are_dead=args.nodes_are_dead,
        )  # fmt: skip
    except OSError as error:
        raise ConfigError(
            f"{args.data} cannot be written: {in_words(error)}; fix that, and run it again"
        ) from error
    if violations:
        _report(violations, as_json=False)
        complain("rae-control", "nothing was restored; take another backup")
        return 1
    say(f"{args.data} holds the backup. Start control; tasks that ran are given back by"
          " themselves.")  # fmt: skip
    return 0


def _end_hold(args: argparse.Namespace) -> int:
    if not args.nodes_are_dead:
        raise ConfigError("name the backup to restore: `rae-control restore FILE --data DIR`")
    said = "leases are given as soon as control starts" if end_hold(args.data) else "nothing waits"
    say(f"{args.data}: {said}")
    return 0


def _report(violations: list[Violation], *, as_json: bool) -> int:
    if as_json:
        say_json({"violations": [asdict(item) for item in violations]})
    else:
        say("\n".join(map(str, violations)) or "all is well")
    return 1 if violations else 0
