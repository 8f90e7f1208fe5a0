"""`raectl allowlist`: helps to write a node's allow-list. Sends nothing; needs no control."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rae_control.cli.raectl_submit import UsageError
from rae_protocol.allowlist import Entry, Refusal, select
from rae_protocol.terminal import say, say_json
from rae_protocol.yamlfile import read_yaml

EXAMPLE = r"""# An allow-list: a node reads every *.yaml of its folder agent/allowlist.d.
- path: /usr/bin/ffmpeg            # absolute; tasks name it `ffmpeg`
  args:                            # each item is one argument, or two that belong together
    - ['-y']                       # Python's regular expressions; the whole argument must match
    - ['-i', '.+\.(mp4|wav|mkv)']  # without a dash in it, a pattern takes no option
    - ['output\.(mp4|mkv)']
  max_total_args_len: 4096         # bytes; the default
  max_runtime_s: 7200              # default 3600
  max_output_mb: 5000              # default 1024
"""


def add_verbs(verbs: Any) -> None:
    """`check` and `show`."""
    made = verbs.add_parser("check", help="whether a file of entries lets a command run")
    made.usage = "raectl allowlist check [--json] FILE -- COMMAND [ARG…]"
    made.add_argument("file", metavar="FILE", type=Path)
    made.add_argument("command", metavar="-- COMMAND", nargs=argparse.REMAINDER)
    made.set_defaults(allowlist=_check)
    shows = verbs.add_parser("show", help="what files let run; without a file, how to write one")
    shows.add_argument("files", metavar="FILE", nargs="*", type=Path)
    shows.set_defaults(allowlist=_show)
    for verb in (made, shows):
        verb.add_argument(
            "--json", action="store_true", default=argparse.SUPPRESS, help="print JSON"
        )


def _check(args: argparse.Namespace) -> int:
    entries = read_yaml(args.file, UsageError).entries(Entry)
    words = args.command[1:] if args.command[:1] == ["--"] else args.command
    if not words:
        raise UsageError("there is no command to check; write it after --")
    found = select(entries, words[0], words[1:])
    if isinstance(found, Refusal):
        text = found.message
        answer = {"argument": found.argument, "patterns": found.patterns}
    else:
        text = f"allowed by entry {found + 1} of {args.file} ({entries[found].caps})"
        answer = {"entry": found + 1}
    refused = isinstance(found, Refusal)
    answer = {"allowed": not refused, "message": text, **answer}
    say_json(answer) if args.json else say(text)
    return 1 if refused else 0


def _show(args: argparse.Namespace) -> int:
    listed = {str(file): read_yaml(file, UsageError).entries(Entry) for file in args.files}
    if args.json:
        dumped = {name: [one.model_dump() for one in found] for name, found in listed.items()}
        say_json(dumped)
        return 0
    for name, entries in listed.items():
        for number, entry in enumerate(entries, start=1):
            say(f"{name}, entry {number}: {entry.name} ({entry.path}), {entry.caps}")
            for item in entry.args:
                say("    " + "  followed by  ".join(item))
    if not listed:
        say(EXAMPLE.rstrip("\n"))
    return 0
