"""`python -m tools.scenarios VERB`: what `make demo`, `chaos`, `soak` and `fuzz` run."""

from __future__ import annotations

import argparse
import json
import os
import sys
from collections.abc import Mapping, Sequence
from typing import Protocol

from rae_protocol.terminal import CLOSED_PIPE, INTERRUPTED, complain
from tools.processes import MeshError, exit_on_signals
from tools.scenarios import chaos, demo, fuzz, outage, soak


class Scenario(Protocol):
    """What each module of a scenario has."""

    def options(self, parser: argparse.ArgumentParser) -> None:
        """Add its own options."""

    def run(self, args: argparse.Namespace) -> int:
        """The whole course; returns the exit code."""


SCENARIOS: Mapping[str, Scenario] = {
    "demo": demo, "chaos": chaos, "outage": outage, "soak": soak, "fuzz": fuzz,
}  # fmt: skip


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python -m tools.scenarios", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    for name, scenario in SCENARIOS.items():
        scenario.options(verbs.add_parser(name, description=scenario.__doc__))
    args = parser.parse_args(argv)
    exit_on_signals()
    try:
        return SCENARIOS[args.verb].run(args)
    except KeyboardInterrupt:
        complain(args.verb, "stopped; nothing is left running")
        return INTERRUPTED
    except (MeshError, TimeoutError, json.JSONDecodeError) as error:
        complain(args.verb, str(error))
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return CLOSED_PIPE


if __name__ == "__main__":
    sys.exit(main())
