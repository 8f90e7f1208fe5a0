"""`rae-node`: run the agent, or talk to the one that runs."""

from __future__ import annotations

import argparse
import json
import os
import re
import signal
import sys
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

from rae_node import __version__
from rae_node.errors import ConfigError, NodeError
from rae_node.local_socket import ask
from rae_node.log import EventLog
from rae_node.paths import PRODUCTION_ROOT, Layout, default_node_id, dev_root, only_dev_node
from rae_node.paths import socket_path as socket_of

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}
_EPILOG = "exit codes: 0 done; 1 refused or failed, the sentence on stderr says why; 2 wrong usage"


def parse_duration(text: str) -> float:
    """`90s`, `30m`, `2h`, `1d`; a bare number is seconds. Raises ValueError."""
    match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?)([smhd]?)", text.strip())
    if match is None or float(match[1]) <= 0:
        raise argparse.ArgumentTypeError(f"'{text}' is no duration; write 90s, 30m or 2h")
    return float(match[1]) * _UNITS[match[2] or "s"]


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="rae-node", description="Lend this machine to RAE, politely.", epilog=_EPILOG
    )
    parser.add_argument("--version", action="version", version=f"rae-node {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    where = argparse.ArgumentParser(add_help=False)
    where.add_argument(
        "--data", type=Path, default=_env_path("RAE_DATA"), help="folder of a dev mesh ($RAE_DATA)"
    )
    where.add_argument(
        "--node-id", default=os.environ.get("RAE_NODE_ID"), help="which node ($RAE_NODE_ID)"
    )
    where.add_argument(
        "--root", type=Path, default=PRODUCTION_ROOT, help="folder of an installed node"
    )
    run = verbs.add_parser("run", parents=[where], help="run the agent", epilog=_EPILOG)
    run.add_argument("--dev", action="store_true", help="join a dev control through its --data")
    run.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        dest="overrides",
        help="override any period or limit",
    )
    pause = verbs.add_parser(
        "pause", parents=[where], help="stop all work now and take none", epilog=_EPILOG
    )
    pause.add_argument(
        "duration", nargs="?", type=parse_duration, help="30m, 2h, 90s; without it until resume"
    )
    pause.add_argument("--json", action="store_true", help="for programs")
    for name, text in (("resume", "end the pause"), ("status", "show what the agent does")):
        verb = verbs.add_parser(name, parents=[where], help=text, epilog=_EPILOG)
        if name == "status":
            verb.add_argument("--json", action="store_true", help="for programs")
    verbs.add_parser(
        "probe", parents=[where], help="print what this machine can do, as JSON", epilog=_EPILOG
    )
    check = verbs.add_parser(
        "check-config", help="check a config.yaml or runtime.yaml", epilog=_EPILOG
    )
    check.add_argument("file", type=Path)
    return parser


def main(argv: list[str] | None = None) -> int:
    """The program. Returns its exit code."""
    options = _parser().parse_args(argv)
    try:
        return int(_VERBS[options.verb](options))
    except NodeError as error:
        print(f"rae-node: {error.message}", file=sys.stderr)
    except OSError as error:
        print(f"rae-node: {error}; check the folder and its owner", file=sys.stderr)
    except BrokenPipeError:
        return 1
    return 1


def _run(options: argparse.Namespace) -> int:
    from rae_node import assemble  # noqa: PLC0415 - the other verbs answer faster without it
    from rae_node.settings import parse_overrides  # noqa: PLC0415

    overrides = parse_overrides(options.overrides)
    if options.dev:
        if options.data is None:
            raise ConfigError("--dev needs the control's folder: --data DIR (or $RAE_DATA)")
        node_id = options.node_id or default_node_id()
        layout = Layout(dev_root(options.data, node_id))
        assemble.prepare_dev(options.data, node_id, layout)
    else:
        layout = Layout(options.root.absolute())
    loaded = assemble.load(layout, overrides)
    log = EventLog(loaded.config.node_id)
    agent, lock = assemble.build_agent(loaded, log)

    def stop(_: int, __: FrameType | None) -> None:
        agent.done.set()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    agent.start()
    log.info("agent_started", pid=os.getpid(), root=str(layout.root))
    agent.done.wait()
    agent.shut_down()
    lock.release()
    return agent.exit_code


def _layout(options: argparse.Namespace) -> Layout:
    if options.data is None:
        return Layout(options.root.absolute())
    return Layout(dev_root(options.data, options.node_id or only_dev_node(options.data)))


def _pause(options: argparse.Namespace) -> int:
    request = {"verb": "pause"}
    if options.duration is not None:
        request["duration_s"] = options.duration
    answer = ask(socket_of(_layout(options).root), request)
    if options.json:
        print(json.dumps(answer, indent=2))
        return 0
    end = answer["until"]
    until = f"until {datetime.fromtimestamp(end):%H:%M:%S}" if end else "until `rae-node resume`"
    print(f"Paused {until}: {answer['stopped']} tasks stopped in {answer['stopped_ms']} ms.")
    return 0


def _resume(options: argparse.Namespace) -> int:
    answer = ask(socket_of(_layout(options).root), {"verb": "resume"})
    reasons = ", ".join(answer["reasons"])
    why = f" ({reasons}, {answer['cooldown_left_s']} s of cooldown left)" if reasons else ""
    print(f"Resumed: {answer['availability']}{why}.")
    return 0


def _status(options: argparse.Namespace) -> int:
    answer = ask(socket_of(_layout(options).root), {"verb": "status"})
    if options.json:
        print(json.dumps(answer, indent=2))
        return 0
    slots: dict[str, Any] = answer.pop("slots")
    for name, value in answer.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        print(f"{name.replace('_', ' '):24} {'-' if shown in (None, '') else shown}")
    for name, task in slots.items():
        what = "free" if task is None else f"{task['task_id']} ({task['kind']}, {task['phase']})"
        print(f"{'slot ' + name:24} {what}")
    return 0


def _probe(options: argparse.Namespace) -> int:
    from rae_node import assemble  # noqa: PLC0415 - the other verbs answer faster without it

    node_id = options.node_id or default_node_id()
    root = options.root if options.data is None else dev_root(options.data, node_id)
    config, runtime = assemble.read_files_for_probe(Layout(root), node_id)
    print(json.dumps(assemble.probe(config, runtime, Path.cwd()), indent=2))
    return 0


def _check_config(options: argparse.Namespace) -> int:
    from rae_node.config import check_file  # noqa: PLC0415 - as above

    kind = check_file(options.file)
    print(f"{options.file}: a valid {kind}")
    return 0


def _env_path(name: str) -> Path | None:
    value = os.environ.get(name)
    return Path(value) if value else None


_VERBS = {
    "run": _run,
    "pause": _pause,
    "resume": _resume,
    "status": _status,
    "probe": _probe,
    "check-config": _check_config,
}
