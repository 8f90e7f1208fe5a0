"""`rae-node`: run the agent, or talk to the one that runs."""

from __future__ import annotations

import argparse
import os
import signal
import threading
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from types import FrameType
from typing import Any

from rae_node import __version__
from rae_node.config.layout import (
    PRODUCTION_ROOT,
    Layout,
    default_node_id,
    dev_root,
    only_dev_node,
    socket_path,
)
from rae_node.config.tuning import seconds_of
from rae_node.errors import ConfigError, NodeError
from rae_node.owner.socket import ask
from rae_node.package import DATA
from rae_protocol import notify
from rae_protocol.errors import in_words
from rae_protocol.terminal import complain, run_program, say, say_json

_Verb = Callable[[argparse.Namespace], int]
_EPILOG = (
    "exit codes: 0 done; 1 refused or failed, the sentence on stderr says why; 2 wrong usage;"
    " 141 the output's reader has gone"
)
_PAGES = {"owner": DATA / "owner.md"}


def parse_duration(text: str) -> float:
    """`90s`, `30m`, `2h`, `1d`; a bare number is seconds. Raises ArgumentTypeError."""
    try:
        found = float(str(seconds_of(text)))
    except ValueError:
        found = 0.0
    if found <= 0:
        raise argparse.ArgumentTypeError(f"'{text}' is no duration; write 90s, 30m or 2h")
    return found


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    parser = argparse.ArgumentParser(
        prog="rae-node",
        description="Lend this machine to RAE Mesh while its owner is away.",
        epilog=_EPILOG,
    )
    parser.add_argument("--version", action="version", version=f"rae-node {__version__}")
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    where = argparse.ArgumentParser(add_help=False)
    data, node_id = os.environ.get("RAE_DATA") or None, os.environ.get("RAE_NODE_ID")
    where.add_argument("--data", type=Path, default=data, help="folder of a dev mesh ($RAE_DATA)")
    where.add_argument("--node-id", default=node_id, help="which node ($RAE_NODE_ID)")
    installed = "folder of an installed node"
    where.add_argument("--root", type=Path, default=PRODUCTION_ROOT, help=installed)

    def verb(name: str, text: str, run: _Verb, located: bool = True) -> argparse.ArgumentParser:
        parents = [where] if located else []
        found = verbs.add_parser(name, parents=parents, help=text, epilog=_EPILOG)
        found.set_defaults(run=run)
        return found

    run = verb("run", "run the agent", _run)
    run.add_argument("--dev", action="store_true", help="join a dev control through its --data")
    sets = run.add_argument("--set", action="append", default=[], dest="overrides")
    sets.metavar, sets.help = "NAME=VALUE", "override any period or limit"
    pause = verb("pause", "stop all tasks now and take no new ones", _pause)
    until = "30m, 2h, 2d, 90s; a bare number is seconds; without it until resume"
    pause.add_argument("duration", nargs="?", type=parse_duration, help=until)
    pause.add_argument("--show", action="store_true", help="show the current pause; change nothing")
    verb("resume", "end the pause", _resume)
    status = verb("status", "show what the agent runs, and why it takes no task", _status)
    reasons = verb("why", "show what blocks work, since when, and what ends it", _why)
    past = verb("history", "list the last decisions, tasks and logins", _history)
    past.add_argument("--count", type=int, default=50, help="how many entries (50)")
    doctor = verb("doctor", "check every precondition, and say how to fix what fails", _doctor)
    for talks in (pause, status, reasons, past, doctor):
        talks.add_argument("--json", action="store_true", help="print JSON")
    verb("dry-run", "show the guard's decision in four cases and now; runs nothing", _dry_run)
    verb("report", "show whether this node is ready to work unattended, and why not", _report)
    seen = "show whether input is detected on each seat, and test it"
    detector = verb("detector", seen, _detector)
    detector.add_argument("action", choices=["status", "test"])
    detector.add_argument("--seat", default="seat0", help="which seat to test (seat0)")
    wait = "how long to wait for each key or movement (20s)"
    detector.add_argument("--timeout", type=parse_duration, default=20.0, help=wait)
    detector.add_argument("--json", action="store_true", help="print status as JSON")
    allows = verb("allows", "check whether the allow-list permits a command; runs nothing", _allows)
    allows.add_argument("command", nargs=argparse.REMAINDER, metavar="-- COMMAND ARG")
    verb("probe", "print what this machine can do, as JSON", _probe)
    files = "check a config.yaml, runtime.yaml, owner.yaml or allow-list"
    check = verb("check-config", files, _check_config, located=False)
    check.add_argument("file", type=Path)
    guide = verb("help", "`help owner`: the page for the owner of this machine", _help, False)
    guide.add_argument("topic", nargs="?", choices=list(_PAGES))
    return parser


def main(argv: list[str] | None = None) -> int:
    """The program. Returns its exit code."""
    return run_program("rae-node", lambda: _main(argv))


def _main(argv: list[str] | None) -> int:
    options = build_parser().parse_args(argv)
    try:
        code: int = options.run(options)
        return code
    except NodeError as error:
        complain("rae-node", error.message)
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        complain("rae-node", f"{where}{in_words(error)}")
    return 1


def _run(options: argparse.Namespace) -> int:
    from rae_node import build  # noqa: PLC0415 - the other verbs answer faster without it
    from rae_protocol.yamlfile import read_overrides  # noqa: PLC0415 - as above

    os.umask(os.umask(0o077) | 0o022)  # no other user may change its rules and programs
    overrides = read_overrides(options.overrides, ConfigError)
    layout = Layout(options.root.absolute())
    if options.dev:
        if options.data is None:
            raise ConfigError(
                "--dev needs control's folder; name it with --data DIR (or $RAE_DATA)"
            )
        os.umask(0o022)  # as an installed node's files are; its owner reaches the socket
        node_id = options.node_id or default_node_id()
        layout = Layout(dev_root(options.data, node_id))
        build.prepare_dev(options.data, node_id, layout)
    elif options.data is not None:
        raise ConfigError(
            "--data (or $RAE_DATA) goes with --dev; add --dev, or leave --data out for an"
            " installed node"
        )
    agent, lock = build.build_agent(layout, overrides)

    def stop(_: int, __: FrameType | None) -> None:
        # Not from here: the main thread may hold the event's lock while it waits.
        threading.Thread(target=agent.done.set, daemon=True).start()

    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, stop)
    # Taken out: what the agent starts has nothing to tell there.
    manager = os.environ.pop("NOTIFY_SOCKET", None)
    agent.start()
    notify.tell(manager, "READY=1")
    log, sources = agent.context.log, agent.context.config.guard_sources
    kept_apart = {"isolation": agent.context.isolation.level, "why": agent.context.isolation.why}
    log.info(
        "agent_started", pid=os.getpid(), root=str(layout.root), guard_sources=sources,
        **kept_apart,
    )  # fmt: skip
    # The kernel may hand a signal to any thread (one that forks, say), and Python acts on it only
    # when this one runs again: without the time limit a SIGTERM could be lost.
    while not agent.done.wait(1.0):
        agent.look_at_files()
        if agent.guard.lives():
            notify.tell(manager, "WATCHDOG=1")
    notify.tell(manager, "STOPPING=1")
    agent.shut_down()
    log.flush()
    lock.release()
    return agent.exit_code


def _ask(options: argparse.Namespace, **request: Any) -> dict[str, Any]:
    """Ask the agent of the node that the options mean."""
    return ask(socket_path(_layout(options).root), request)


def _layout(options: argparse.Namespace) -> Layout:
    """Folders of the node that the options mean. Raises NodeError."""
    if options.data is None:
        return Layout(options.root.absolute())
    return Layout(dev_root(options.data, options.node_id or only_dev_node(options.data)))


def _pause(options: argparse.Namespace) -> int:
    from rae_node.owner import pausing  # noqa: PLC0415 - the other verbs answer faster without it

    if options.show and options.duration is not None:
        raise ConfigError("--show takes no duration; leave one of them out")
    if options.show:
        shown, words = pausing.shown(_layout(options))
    else:
        shown, words = pausing.pause(_layout(options), options.duration)
    say_json(shown) if options.json else say(words)
    return 0


def _resume(options: argparse.Namespace) -> int:
    from rae_node.owner import pausing  # noqa: PLC0415 - as above

    say(pausing.resume(_layout(options)))
    return 0


def _status(options: argparse.Namespace) -> int:
    answer = _ask(options, verb="status")
    if options.json:
        say_json(answer)
        return 0
    slots: dict[str, Any] = answer.pop("slots")
    if end := answer["paused_until"]:
        answer["paused_until"] = f"{datetime.fromtimestamp(end):%Y-%m-%d %H:%M:%S}"
    elif end == 0:
        answer["paused_until"] = "`rae-node resume`"
    for sentence in answer.pop("no_task_because") or ["ready for tasks"]:
        say(f"no task: {sentence}" if not answer["taking_work"] else sentence)
    for name, value in answer.items():
        shown = ", ".join(map(str, value)) if isinstance(value, list) else value
        say(f"{name.replace('_', ' '):24} {'-' if shown in (None, '') else shown}")
    for name, task in slots.items():
        what = "free" if task is None else f"{task['task_id']} ({task['kind']}, {task['phase']})"
        say(f"{'slot ' + name:24} {what}")
    return 0


def _why(options: argparse.Namespace) -> int:
    from rae_node.owner import why  # noqa: PLC0415 - the other verbs answer faster without it

    answer = _ask(options, verb="why")
    shown = why.in_lines(answer, time.time())
    say_json(answer) if options.json else say("\n".join(shown))
    return 0


def _history(options: argparse.Namespace) -> int:
    from rae_node.owner import history  # noqa: PLC0415 - as above
    from rae_node.telemetry.journal import Journal  # noqa: PLC0415 - as above
    from rae_protocol.clock import SystemClock  # noqa: PLC0415 - as above

    try:
        entries = _ask(options, verb="history", count=options.count)["entries"]
    except NodeError as error:
        logs = _layout(options).logs
        if error.rc != "not_running" or not os.access(logs, os.R_OK | os.X_OK):
            raise
        entries = Journal(logs, SystemClock()).last(options.count)
    lines = list(history.in_lines(entries)) or ["nothing has happened here yet"]
    say_json(entries) if options.json else say("\n".join(lines))
    return 0


def _dry_run(options: argparse.Namespace) -> int:
    from rae_node.diagnostics import checks  # noqa: PLC0415 - the other verbs answer faster without it

    lines, as_they_must = checks.dry_run(_layout(options))
    say("\n".join(lines))
    return 0 if as_they_must else 1


def _report(options: argparse.Namespace) -> int:
    from rae_node.diagnostics import findings, report  # noqa: PLC0415 - as above

    found = report.collect(_layout(options))
    say(report.rendered(found))
    return 0 if findings.healthy(found) else 1


def _doctor(options: argparse.Namespace) -> int:
    from rae_node.diagnostics import doctor, findings  # noqa: PLC0415 - as above

    found = list(doctor.examine(_layout(options), dev=options.data is not None))
    say_json(findings.as_json(found)) if options.json else say(findings.rendered(found))
    return 0 if findings.healthy(found) else 1


def _detector(options: argparse.Namespace) -> int:
    from rae_node import build  # noqa: PLC0415 - as above
    from rae_node.owner import detector  # noqa: PLC0415 - as above

    eyes = build.detector_eyes(_layout(options))
    if options.action == "test":
        return 0 if detector.test(eyes, options.seat, options.timeout, say) else 1
    blind, seats, state = detector.status(eyes)
    if options.json:
        say_json(detector.as_json(blind, seats))
    else:
        say("\n".join(detector.in_words(blind, seats, state)))
    return 0


def _allows(options: argparse.Namespace) -> int:
    from rae_node import build  # noqa: PLC0415 - as above
    from rae_node.config import files as config  # noqa: PLC0415 - as above

    layout, words = _layout(options), options.command
    words = words[1:] if words[:1] == ["--"] else words
    if not words:
        raise ConfigError("Name the command: -- COMMAND ARG…")
    found = build.allow_list(config.load_node_config(layout.config_file), layout)
    entry = found.check(words[0], words[1:])
    say(f"allowed: {entry.path}, at most {entry.max_runtime_s:g} s; nothing was run")
    return 0


def _probe(options: argparse.Namespace) -> int:
    from rae_node import build  # noqa: PLC0415 - the other verbs answer faster without it

    node_id = options.node_id or default_node_id()
    root = options.root if options.data is None else dev_root(options.data, node_id)
    layout = Layout(root)
    config, runtime = build.read_files_for_probe(layout, node_id)
    say_json(build.probe(config, runtime, layout, Path.cwd()))
    return 0


def _check_config(options: argparse.Namespace) -> int:
    from rae_node.diagnostics.config_check import check_file  # noqa: PLC0415 - as above

    kind = check_file(options.file)
    say(f"{options.file}: a valid {kind}")
    return 0


def _help(options: argparse.Namespace) -> int:
    if options.topic is None:
        build_parser().print_help()
    else:
        say(_PAGES[options.topic].read_text(encoding="utf-8").rstrip("\n"))
    return 0
