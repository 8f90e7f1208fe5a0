"""From the command line of `raectl submit` to the bodies of tasks."""

from __future__ import annotations

import argparse
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rae_control.cli.raectl_nodes import seconds
from rae_protocol import models
from rae_protocol.client import RaeClient
from rae_protocol.errors import RaeError, in_words

_ARTIFACT = re.compile(r"(?P<name>.+):(?P<type>[^:/]+/[^:/]+|)(?::(?P<mb>[^:]*))?", re.DOTALL)


class UsageError(Exception):
    """The command line or a file named on it is wrong; the text says what to write instead."""


def add_options(made: argparse.ArgumentParser) -> None:
    """What `raectl submit` takes."""
    made.usage = "raectl submit [OPTIONS] -- COMMAND [ARG…]"
    repeated: dict[str, Any] = {"action": "append", "default": []}
    made.add_argument("command", nargs="*", metavar="COMMAND", help="the command, after --")
    made.add_argument("--kind", help="cli (default with a command), python, llm, or a named job")
    made.add_argument("--python", metavar="NAME", help="run a python task of the nodes")
    made.add_argument("--params", metavar="JSON", help="parameters for --python or --kind")
    made.add_argument(
        "--json-file", metavar="FILE", help="submit bodies from a JSON file, - for stdin"
    )
    made.add_argument("--input", metavar="NAME=FILE", **repeated,
                      help="a file to upload; also NAME=task:ID/ARTIFACT and NAME=URL")  # fmt: skip
    made.add_argument("--artifact", metavar="NAME[:TYPE[:MAX_MB]]", **repeated,
                      help="a file to store; TYPE such as text/plain, which *.txt and *.log have by"
                      " themselves: one alone that is not written becomes the program's output"
                      )  # fmt: skip
    made.add_argument("--require", metavar="NAME=VALUE", **repeated,
                      help='such as gpu=true, ram_gb=16, nodes=\'["n1"]\'')  # fmt: skip
    made.add_argument("--label", metavar="NAME=VALUE", help="to find it again", **repeated)
    made.add_argument("--depends-on", metavar="ID", help="start after this task", **repeated)
    made.add_argument("--priority", type=int, help="0 to 9; 9 goes first; default 5")
    made.add_argument("--timeout-s", type=float, metavar="S", help="longest run of the program")
    made.add_argument("--lease-ttl-s", type=float, metavar="S", help="longest silence of its node")
    made.add_argument("--max-attempts", type=int, metavar="N", help="default 3")
    made.add_argument("--not-before", metavar="TIME")
    made.add_argument("--expires-at", metavar="TIME")
    made.add_argument("--task-id", metavar="ID", help="to make a repeated submit harmless")
    made.add_argument("--key", help="idempotency key")
    made.add_argument(
        "--wait", action="store_true", help="until it has ended; exit code 4 if badly"
    )
    made.add_argument("--timeout", type=seconds, metavar="S", help="longest --wait")


def spec_from(client: RaeClient, args: argparse.Namespace) -> dict[str, Any]:
    """The body of one task; uploads the files that it names. Raises UsageError."""
    if args.python:
        if args.command:
            raise UsageError("--python takes no command; give its parameters with --params JSON")
        body = {"kind": "python", "params": {"task": args.python, "params": _json(args.params)}}
    elif args.command:
        if args.params is not None:
            raise UsageError("--params does not go with a command; write its arguments after --")
        params = {"command": args.command[0], "args": args.command[1:]}
        body = {"kind": args.kind or "cli", "params": params}
    elif args.kind:
        body = {"kind": args.kind, "params": _json(args.params)}
    else:
        raise UsageError(
            "say what to run: `-- COMMAND ARG…`, --python NAME, --kind KIND, --json-file FILE"
        )
    names = ("priority", "timeout_s", "lease_ttl_s", "max_attempts", "depends_on", "task_id")
    given = {name: getattr(args, name) for name in (*names, "not_before", "expires_at")}
    requirements = {key: _scalar(text) for key, text in _pairs(args.require, "--require")}
    given |= {
        "idempotency_key": args.key,
        "labels": dict(_pairs(args.label, "--label")),
        "requirements": requirements,
        "artifacts": [_artifact(text) for text in args.artifact],
        "inputs": {name: _input(client, text) for name, text in _pairs(args.input, "--input")},
    }
    return body | {name: value for name, value in given.items() if value not in (None, [], {})}


def _input(client: RaeClient, text: str) -> dict[str, Any]:
    if text.startswith(("http://", "https://")):
        return {"url": text}
    if text.startswith("task:"):
        task_id, _, artifact = text.removeprefix("task:").partition("/")
        if not artifact:
            raise UsageError(f"{text} names no artifact; write task:ID/NAME")
        return {"from_task": task_id, "artifact": artifact}
    path = Path(text)
    if not path.is_file():
        raise UsageError(f"{text} is no file; name a FILE, a URL, or an artifact as task:ID/NAME")
    return {"sha256": client.upload_blob(path)}


def _artifact(text: str) -> dict[str, Any]:
    """A type has a slash, so a name may have colons. Text by name may be filled from stdout."""
    found = _ARTIFACT.fullmatch(text)
    name, kind, max_mb = (found["name"], found["type"], found["mb"]) if found else (text, "", "")
    if not kind and name.endswith((".txt", ".log")):
        kind = "text/plain"
    try:
        return (
            {"name": name}
            | ({"type": kind} if kind else {})
            | ({"max_mb": float(max_mb)} if max_mb else {})
        )
    except ValueError as error:
        raise UsageError(
            f"'{max_mb}' is no number of MB; write --artifact NAME[:TYPE[:MAX_MB]]"
        ) from error


def _pairs(items: Sequence[str], option: str) -> list[tuple[str, str]]:
    pairs = [item.partition("=") for item in items]
    for (name, mark, _), item in zip(pairs, items, strict=True):
        if not name or not mark:
            raise UsageError(f"'{item}' is no NAME=VALUE; write {option} NAME=VALUE")
    return [(name, value) for name, _, value in pairs]


def _scalar(text: str) -> Any:
    """`16` is a number and `true` a boolean; everything else is text (`["a"]` is JSON)."""
    try:
        return json.loads(text)
    except ValueError:
        return text


def _json(text: str | None) -> dict[str, Any]:
    value = _decode((text or "{}").encode(), "--params")
    if not isinstance(value, dict):
        raise UsageError("--params is no JSON object; write it like '{\"n\": 3}'")
    return value


def specs_from_file(name: str) -> list[dict[str, Any]]:
    """Raw bodies from a file, or `-` for stdin. Raises UsageError."""
    raw = sys.stdin.buffer.read() if name == "-" else _read(Path(name))
    value = _decode(raw, "stdin" if name == "-" else name)
    tasks = value.get("tasks", [value]) if isinstance(value, dict) else value
    if not isinstance(tasks, list) or not all(isinstance(task, dict) for task in tasks):
        raise UsageError(f'{name} holds no tasks; write one, a list of them, or {{"tasks": […]}}')
    return tasks


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise UsageError(f"{path} cannot be read: {in_words(error)}") from error


def _decode(raw: bytes, what: str) -> Any:
    try:
        return models.decode(raw)
    except RaeError as error:
        raise UsageError(f"{what} is not acceptable JSON ({error.cause}); fix it") from error
