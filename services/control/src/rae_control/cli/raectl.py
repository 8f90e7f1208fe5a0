"""raectl: submit work, look at it, operate nodes and tokens; help to write allow-lists.

Exit codes: 0 done, 1 control (or the allow-list) said no, 2 wrong usage, 3 control is not
reachable, 4 the task did not succeed (`submit --wait`, `result`, `self-test`), 130 stopped with
Ctrl-C, 141 the output's reader has gone. Errors go to stderr, one sentence with a hint.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from rae_control.cli import raectl_output as out
from rae_control.cli.raectl_allowlist import add_verbs
from rae_control.cli.raectl_connect import DEFAULT_CREDENTIALS, HOST_CREDENTIALS, connect
from rae_control.cli.raectl_nodes import STATES, NotMet, seconds, self_test, wait_for_state
from rae_control.cli.raectl_submit import UsageError, add_options, spec_from, specs_from_file
from rae_protocol.client import RaeClient
from rae_protocol.errors import RaeError, RemoteError, Unreachable, in_words
from rae_protocol.models import TaskRef, TaskView
from rae_protocol.names import MAX_TASKS_PER_CALL, TaskState
from rae_protocol.terminal import complain, raw_writer, run_program, say, say_json

OK, REFUSED, USAGE, UNREACHABLE, TASK_FAILED = range(5)


@dataclass(frozen=True, slots=True)
class Context:
    """What every command gets."""

    client: RaeClient
    args: argparse.Namespace

    def show(self, value: Any, text: Callable[[], str]) -> None:
        """JSON for programs, else the text for people."""
        if self.args.json:
            say_json(out.plain(value))
        else:
            say(text())


# Tasks


def _submit(ctx: Context) -> int:
    specs = (
        specs_from_file(ctx.args.json_file)
        if ctx.args.json_file
        else [spec_from(ctx.client, ctx.args)]
    )
    refs = list[TaskRef]()
    for start in range(0, len(specs), MAX_TASKS_PER_CALL):
        made = ctx.client.submit(specs[start : start + MAX_TASKS_PER_CALL])
        refs += made
        if ctx.args.wait or len(specs) > MAX_TASKS_PER_CALL:
            # What comes may be cut off, and then this is all that tells of them.
            _complain(f"submitted {', '.join(ref.task_id for ref in made)}")
    if not ctx.args.wait:
        ctx.show(
            {"tasks": refs}, lambda: "\n".join(f"{ref.task_id}  {ref.state.value}" for ref in refs)
        )
        return OK
    end = None if ctx.args.timeout is None else time.monotonic() + ctx.args.timeout
    views = []
    for ref in refs:
        left = None if end is None else max(0.0, end - time.monotonic())
        views.append(ctx.client.wait(ref.task_id, left))
    ctx.show({"tasks": views}, lambda: "\n\n".join(out.outcome(view) for view in views))
    return OK if all(view.state is TaskState.SUCCEEDED for view in views) else TASK_FAILED


def _tasks(ctx: Context) -> int:
    names = ("state", "kind", "label", "node", "submitter", "limit")
    filters = {name: getattr(ctx.args, name) for name in names}
    page = ctx.client.tasks(**filters, cursor=ctx.args.cursor)
    tasks, cursor = list(page.tasks), page.next
    while ctx.args.all and cursor:
        page = ctx.client.tasks(**filters, cursor=cursor)
        tasks, cursor = tasks + page.tasks, page.next
    ctx.show({"tasks": tasks, "next": cursor}, lambda: out.task_table(tasks, cursor))
    return OK


def _task(ctx: Context) -> int:
    view = ctx.client.task(ctx.args.task_id)
    ctx.show(view, lambda: out.task_detail(view))
    return OK


def _why(ctx: Context) -> int:
    view = ctx.client.task(ctx.args.task_id)
    ctx.show(
        {"task_id": view.task_id, "state": view.state.value, "why": view.why},
        lambda: out.why(view),
    )
    return OK


def _log(ctx: Context) -> int:
    task_id, wanted = ctx.args.task_id, ctx.args.attempt
    if wanted is not None and not 1 <= wanted <= (had := ctx.client.task(task_id).attempts):
        text = f"{task_id} has {out.count(had, 'attempt')}, and none with the number {wanted}"
        _complain(f"{text}; choose one that `raectl task` lists.")
        return REFUSED
    write = raw_writer()
    for piece in ctx.client.stream_log(task_id, wanted, follow=ctx.args.follow):
        write(piece)
    return OK


def _result(ctx: Context) -> int:
    view = ctx.client.task(ctx.args.task_id)
    if not view.state.final:
        _complain(
            f"{view.task_id} is {view.state.value}; it has no result yet. `raectl why` says why."
        )
        return REFUSED
    if view.state is not TaskState.SUCCEEDED:
        ctx.show(view, lambda: out.outcome(view))
        return TASK_FAILED
    say_json(ctx.client.result(ctx.args.task_id))
    return OK


def _artifacts(ctx: Context) -> int:
    view = ctx.client.task(ctx.args.task_id)
    written: list[dict[str, Any]] = []
    for item in view.artifacts if ctx.args.output else []:
        target = Path(ctx.args.output) / item.name
        try:
            target.parent.mkdir(parents=True, exist_ok=True)
            ctx.client.fetch_artifact(view.task_id, item.name, target)
        except OSError as error:
            raise UsageError(f"{target} cannot be written: {in_words(error)}") from error
        written.append({"name": item.name, "path": str(target)})
    ctx.show(
        {"artifacts": view.artifacts, "written": written},
        lambda: out.artifact_table(view.artifacts, [entry["path"] for entry in written]),
    )
    return OK


def _verb(ctx: Context) -> int:
    """Cancel or requeue each; the first refusal does not keep the others from their turn."""
    call = ctx.client.cancel if ctx.args.verb == "cancel" else ctx.client.requeue
    views, code = list[TaskView](), OK
    for task_id in ctx.args.task_ids:
        try:
            views.append(call(task_id, ctx.args.reason))
        except Unreachable:
            if views:  # whoever goes on by hand must know where
                _show_states(ctx, views)
            raise
        except RaeError as error:
            _complain(f"{task_id}: {error.message}")
            code = REFUSED
    _show_states(ctx, views)
    return code


def _show_states(ctx: Context, views: Sequence[TaskView]) -> None:
    if views or ctx.args.json:
        lines = "\n".join(f"{view.task_id}  {view.state.value}" for view in views)
        ctx.show({"tasks": views}, lambda: lines)


# Nodes and tokens


def _nodes(ctx: Context) -> int:
    if ctx.args.verb == "list":
        nodes = ctx.client.nodes(ctx.args.all)
        ctx.show({"nodes": nodes}, lambda: out.node_table(nodes))
    elif ctx.args.verb == "enrol":
        kind = "bearer" if ctx.args.bearer else "hmac"
        known = {node.node_id for node in ctx.client.nodes(include_all=True)}
        enrolled = ctx.client.enrol(ctx.args.node_id, kind, ctx.args.trusted)
        if enrolled.node_id in known and not enrolled.trusted:
            text = f"{enrolled.node_id} was enrolled before, and is not trusted from now on"
            _complain(f"{text}; if it shall be, enrol it with --trusted.")
        ctx.show(enrolled, lambda: out.enrolled(enrolled))
    else:
        node = ctx.client.node_verb(ctx.args.node_id, ctx.args.verb, ctx.args.reason)
        ctx.show(node, lambda: out.node_table([node]))
    return OK


def _wait_for_node(ctx: Context) -> int:
    node = wait_for_state(ctx.client, ctx.args.node_id, ctx.args.state, ctx.args.timeout)
    ctx.show(node, lambda: out.node_table([node]))
    return OK


def _self_test(ctx: Context) -> int:
    view = self_test(ctx.client, ctx.args.node_id, ctx.args.timeout)
    ctx.show(view, lambda: out.outcome(view))
    return OK if view.state is TaskState.SUCCEEDED else TASK_FAILED


def _tokens(ctx: Context) -> int:
    if ctx.args.verb == "list":
        tokens = ctx.client.tokens()
    elif ctx.args.verb == "add":
        tokens = [ctx.client.add_token(ctx.args.name, ctx.args.role)]
    else:
        tokens = [ctx.client.revoke_token(ctx.args.name)]
    ctx.show({"tokens": tokens}, lambda: out.token_table(tokens))
    return OK


# The command line


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        _complain(f"{message}. Try `{self.prog} --help`.")
        raise SystemExit(USAGE)


def build_parser() -> argparse.ArgumentParser:
    """The whole command line."""
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")
    common.add_argument(
        "--credentials", metavar="FILE", default=argparse.SUPPRESS,
        help="a credentials.json of `serve --dev`; default: RAE_URL and RAE_TOKEN, else"
        f" RAE_CREDENTIALS, else ./{DEFAULT_CREDENTIALS}, else {HOST_CREDENTIALS}",
    )  # fmt: skip
    common.add_argument(
        "--ca-file", metavar="FILE", default=argparse.SUPPRESS,
        help="PEM file of the CA that signed control's certificate; default: RAE_CA_FILE, else"
        " REQUESTS_CA_BUNDLE, CURL_CA_BUNDLE or SSL_CERT_FILE, else the public CAs",
    )  # fmt: skip
    parser = _Parser(
        prog="raectl", description="Submit tasks to RAE Mesh and operate it.", parents=[common],
        epilog="exit codes: 0 done; 1 refused; 2 wrong usage; 3 control is not reachable;"
        " 4 the task did not succeed; 141 the output's reader has gone",
    )  # fmt: skip
    verbs = parser.add_subparsers(dest="group", required=True, metavar="VERB")

    def add(
        where: Any, name: str, run: Callable[[Context], int], text: str
    ) -> argparse.ArgumentParser:
        made: argparse.ArgumentParser = where.add_parser(
            name, help=text, description=text, parents=[common]
        )
        made.set_defaults(run=run, verb=name)
        return made

    add_options(add(verbs, "submit", _submit, "submit a task"))
    listing = add(verbs, "tasks", _tasks, "list tasks, newest first")
    listing.add_argument("--state", choices=[state.value for state in TaskState])
    for name in ("--kind", "--node", "--submitter", "--cursor"):
        listing.add_argument(name)
    listing.add_argument("--label", metavar="NAME=VALUE", help="only tasks with this label")
    listing.add_argument("--limit", type=int, default=50)
    listing.add_argument("--all", action="store_true", help="all pages")
    for name, run, text in (
        ("task", _task, "show one task with its history"),
        ("why", _why, "explain why a task does not run"),
        ("log", _log, "print the log of the latest attempt"),
        ("result", _result, "print what a task returned"),
        ("artifacts", _artifacts, "list or fetch the artifacts of a task"),
    ):
        made = add(verbs, name, run, text)
        made.add_argument("task_id", metavar="ID")
        if name == "log":
            made.add_argument("-f", "--follow", action="store_true", help="until the attempt ends")
            made.add_argument("--attempt", type=int, metavar="N", help="default: the latest")
        elif name == "artifacts":
            made.add_argument("-o", "--output", metavar="DIR", help="fetch them into this folder")
    for name, text in (("cancel", "cancel tasks"), ("requeue", "queue ended tasks again")):
        made = add(verbs, name, _verb, text)
        made.add_argument("task_ids", metavar="ID", nargs="+")
        made.add_argument("--reason", help="a sentence for the history")
    nodes = verbs.add_parser("nodes", help="operate nodes").add_subparsers(
        required=True, metavar="VERB"
    )
    add(nodes, "list", _nodes, "list nodes").add_argument("--all", action="store_true")
    for name, text in (
        ("enrol", "admit a node and print its secret"), ("drain", "give a node no new tasks"),
        ("resume", "end a drain or a cordon"), ("revoke", "end its secret, session and leases"),
    ):  # fmt: skip
        made = add(nodes, name, _nodes, text)
        made.add_argument("node_id", metavar="NODE")
        if name == "enrol":
            made.add_argument("--bearer", action="store_true", help="a client without signatures")
            made.add_argument(
                "--trusted", action="store_true", help="its reports may cordon others"
            )
        else:
            made.add_argument("--reason", help="a sentence for the history")
    waiting = add(nodes, "wait", _wait_for_node, "wait until a node is in a state")
    waiting.add_argument("--state", choices=STATES, default="online")
    testing = add(verbs, "self-test", _self_test, "have a node run one small task")
    for made, longest in ((waiting, 60), (testing, 120)):
        made.add_argument("node_id", metavar="NODE")
        made.add_argument(
            "--timeout", type=seconds, metavar="S", default=longest, help="in seconds"
        )
    tokens = verbs.add_parser("tokens", help="manage tokens").add_subparsers(
        required=True, metavar="VERB"
    )
    add(tokens, "list", _tokens, "list tokens")
    made = add(tokens, "add", _tokens, "make a token; it is shown once")
    made.add_argument("name", metavar="NAME")
    made.add_argument("--role", choices=["submit", "read", "admin"], required=True)
    add(tokens, "revoke", _tokens, "end a token").add_argument("name", metavar="NAME")
    lists = verbs.add_parser(
        "allowlist", help="help to write a node's allow-list; needs no control"
    )
    add_verbs(lists.add_subparsers(required=True, metavar="VERB"))
    return parser


def _hint(error: RemoteError) -> str:
    """What to change on this command line, where control's answer cannot know it."""
    if error.status == 401:
        return " Here: set RAE_TOKEN, or name --credentials."
    if error.rc == "not_found":
        return " Here: take the path off the URL in RAE_URL or in the credentials file."
    return ""


def _complain(sentence: str) -> None:
    complain("raectl", sentence)


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; returns its exit code."""
    return run_program("raectl", lambda: _main(argv))


def _main(argv: Sequence[str] | None) -> int:
    args = build_parser().parse_args(argv)
    args.json = getattr(args, "json", False)
    try:
        if args.group == "allowlist":
            alone: Callable[[argparse.Namespace], int] = args.allowlist
            return alone(args)
        run: Callable[[Context], int] = args.run
        return run(Context(connect(args), args))
    except UsageError as error:
        _complain(str(error))
        return USAGE
    except Unreachable as error:
        _complain(error.message)
        return UNREACHABLE
    except RemoteError as error:
        _complain(error.message + _hint(error))
        return REFUSED
    except RaeError as error:
        # Our own check of a body, before anything was sent.
        usage = error.rc in {"invalid_body", "invalid_json"}
        way = "; correct it, or set LC_ALL=C.UTF-8" if error.rc == "invalid_json" else ""
        _complain((usage and error.cause and error.cause + way) or error.message)
        return USAGE if usage else REFUSED
    except NotMet as error:
        _complain(str(error))
        return REFUSED
    except TimeoutError as error:
        _complain(f"{error}; wait longer with --timeout, or look with `raectl why ID`.")
        return REFUSED


if __name__ == "__main__":
    sys.exit(main())
