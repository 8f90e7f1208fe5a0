"""May this machine be used now? For the owner's scripts (B2, B3) and the dry run (B7).

`python -m rae_node.checks user|gpu --root DIR`: exit code 0 is SAFE TO RUN, 1 everything else.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

from rae_node.build import build_sources
from rae_node.config.files import NodeConfig, RuntimeConfig, SourceName, load_both
from rae_node.config.layout import Layout, socket_path
from rae_node.config.tuning import Settings
from rae_node.errors import NodeError, listed
from rae_node.guard.loop import rules_of
from rae_node.guard.owner_file import OwnerFile
from rae_node.guard.policy import Decision, Reading, Rules, decide
from rae_node.guard.sources.base import look_once
from rae_node.guard.sources.owner import OwnerSource
from rae_node.guard.sources.pause import PauseSource
from rae_node.guard.words import in_words
from rae_node.host import processes
from rae_node.host.nvml import NvmlChild
from rae_node.owner.socket import ask
from rae_protocol.clock import SystemClock

PATIENCE_S = 6.0  # longer than any source's own limit, so that it can say what is wrong


def look(
    layout: Layout,
    config: NodeConfig,
    runtime: RuntimeConfig,
    names: Sequence[SourceName] | None = None,
) -> tuple[list[Reading], dict[str, str]]:
    """Readings and problems (by source), from outside the agent: its tasks are ours all the same.

    `names`: which; those of config.yaml without it.
    """
    clock = SystemClock()

    def ours() -> frozenset[int]:
        return frozenset(processes.predecessors(layout.root))

    owner = OwnerFile(layout.owner_file)
    with closing(NvmlChild()) as nvml:
        sources = build_sources(
            config,
            lambda: runtime,
            Settings(),
            clock,
            layout,
            names=names,
            nvml=nvml,
            ours=ours,
            owner=owner,
        )
        pause = PauseSource(layout.run / "pause.json", clock, layout.pause_file)
        return look_once(
            [*sources.values(), OwnerSource(owner, clock, ours=ours), pause], PATIENCE_S
        )


def user_idle(layout: Layout) -> tuple[Decision, list[str]]:
    """B2: sessions, input, terminals, remote desktops, foreign GPU use, the owner's word.

    Raises NodeError.
    """
    config, runtime = load_both(layout.config_file, layout.runtime_file)
    readings, problems = look(layout, config, runtime, ("logind", "input", "tty", "remote", "gpu"))
    words = [*_holders(readings), *problems.values()]
    return decide(replace(_rules(layout, runtime), limits={}), readings, 0), words


def gpu_load(layout: Layout) -> tuple[Decision, list[str]]:
    """B3: GPU use and memory against the limits, and nothing else. Raises NodeError."""
    config, runtime = load_both(layout.config_file, layout.runtime_file)
    readings, problems = look(layout, config, runtime, ("gpu",))
    only = [replace(one, present=one.present and False) for one in readings if one.source == "gpu"]
    return decide(Rules(True, True, _rules(layout, runtime).limits), only, 0), [*problems.values()]


def dry_run(layout: Layout) -> tuple[list[str], bool]:
    """B7: four made-up cases under this node's switches and limits, then the machine as it is now.

    Returns lines and whether the four came out as they must: where a switch is off, nothing may
    work. Raises NodeError.
    """
    config, runtime = load_both(layout.config_file, layout.runtime_file)
    rules = _rules(layout, runtime)
    idle = Reading("gpu", measures={"gpu_percent": 0.0, "vram_gb": 0.0})
    over = {name: limit + 1 for name, limit in rules.limits.items() if name != "cpu_percent"}
    busy = Reading("gpu", True, "foreign_gpu_process", measures=over)
    cases = (
        ("User active", [Reading("logind", True, "graphical_session"), idle], False),
        ("User idle", [Reading("logind"), Reading("tty"), idle], True),
        ("GPU busy", [Reading("logind"), busy], False),
        ("GPU free", [Reading("logind"), idle], True),
    )
    lines = ["Dry run: made-up readings, the node's own switches and limits; nothing is executed."]
    right, on = True, rules.enabled and rules.detect_active_user
    for name, readings, must in cases:
        found = decide(rules, readings, 0)
        lines.append(f"{name:12} {_verdict(found)}")
        right = right and found.safe is (must and on)
    unused = {"logind", "gpu"} - set(config.guard_sources)
    if unused:
        text = f"guard_sources in config.yaml leaves out {listed(unused)}: not read here"
        lines.append(f"  {text}")
    readings, problems = look(layout, config, runtime)
    lines.append(f"{'Now, really':12} {_verdict(decide(rules, readings, 0))}")
    words = [*_holders(readings), *problems.values()]
    lines += [f"  {word}" for word in words]
    return [*lines, f"{'The agent':12} {_agents_word(layout)}"], right


def _agents_word(layout: Layout) -> str:
    """What it knows besides the guard's readings: cooldown, session, isolation, disk, slots."""
    try:
        answer = ask(socket_path(layout.root), {"verb": "why"})
    except (NodeError, OSError):
        return (
            "does not answer: cooldown, session, isolation, slots, disk and an operator's drain"
            " are left out"
        )
    if answer["takes_work"]:
        return "takes work"
    return f"takes no work: {'; '.join(str(cause['who']) for cause in answer['causes'])}"


def _rules(layout: Layout, runtime: RuntimeConfig) -> Rules:
    return rules_of(runtime, OwnerFile(layout.owner_file).rules_or_strict())


def _holders(readings: Sequence[Reading]) -> list[str]:
    return [str(holder) for reading in readings for holder in reading.holders]


def _verdict(decision: Decision) -> str:
    words = "; ".join(in_words(code) for code in decision.reasons)
    return "ALLOWS work" if decision.safe else f"BLOCKS work: {words}"


_CHECKS = {"user": user_idle, "gpu": gpu_load}


def answer(argv: Sequence[str]) -> dict[str, Any]:
    """What a script prints. Raises NodeError for arguments that it does not know."""
    if len(argv) != 3 or argv[0] not in _CHECKS or argv[1] != "--root":
        raise NodeError("usage", f"No arguments are taken; leave out {' '.join(argv[3:]) or argv}")
    decision, problems = _CHECKS[argv[0]](Layout(Path(argv[2])))
    return {
        "safe": decision.safe,
        "reasons": list(decision.reasons),
        "why": [in_words(code) for code in decision.reasons],
        "problems": problems,
    }


def main(argv: Sequence[str]) -> int:
    """0 when it is safe and that could be said, 1 for everything else, whatever happens."""
    try:
        found = answer(argv)
    except (Exception, KeyboardInterrupt) as error:  # the program's one catch: each failure is 1
        text = str(error) or repr(error)
        found = {"safe": False, "reasons": ["failed"], "why": [text], "problems": [text]}
    try:
        print(json.dumps({"verdict": "SAFE TO RUN" if found["safe"] else "DO NOT RUN", **found}))
        sys.stdout.flush()
    except OSError:
        return 1
    return 0 if found["safe"] is True else 1
