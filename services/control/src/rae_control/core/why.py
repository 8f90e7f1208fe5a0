"""Why a task does not run, in plain words, for `GET /tasks/<id>` and `raectl why`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from rae_control.core.matching import Canonical, NodeFacts, slot_kind, unmet


@dataclass(frozen=True, slots=True)
class NodeNow:
    """A node at this moment: whether it may get work, and what it would say."""

    facts: NodeFacts
    state: str
    availability: str
    free_slots: Sequence[str]


_AWAY = {
    "owner": "its owner is there",
    "paused": "its owner paused it",
    "blind": "it cannot tell whether its owner is there",
}


def why_queued(
    req: Canonical, nodes: Sequence[NodeNow], ahead: int, queue_available: bool
) -> list[str]:
    """Sentences, the most telling first. `ahead` counts tasks before this one in its lane."""
    if not queue_available:
        return ["The queue is not reachable (Redis is away); the task runs when it is back."]
    if not nodes:
        return ["No node is online."]
    fitting = []
    misfits: Counter[str] = Counter()
    for node in nodes:
        missing = unmet(req, node.facts)
        if missing:
            misfits.update(missing)
        else:
            fitting.append(node)
    if not fitting:
        sentences = [f"None of the {len(nodes)} online node(s) fits:"]
        sentences += [f"{what} ({count} of them lack it)" for what, count in misfits.most_common(5)]
        return sentences
    return _why_busy(req, fitting, ahead)


def _why_busy(req: Canonical, fitting: Sequence[NodeNow], ahead: int) -> list[str]:
    out: list[str] = []
    free: list[str] = []
    for node in fitting:
        name = node.facts.node_id
        if node.state != "online":
            out.append(f"Node {name} fits, but it is {node.state}.")
        elif node.availability != "open":
            out.append(f"Node {name} fits, but {_AWAY.get(node.availability, node.availability)}.")
        elif not any(slot.startswith(slot_kind(req, node.facts)) for slot in node.free_slots):
            out.append(f"Node {name} fits, but all its slots of that kind are busy.")
        else:
            free.append(name)
    if ahead:
        out.insert(0, f"{ahead} task(s) of the same lane are before it.")
    if free and not out:
        out.append(f"Node {free[0]} fits and is free: the task starts at its next poll.")
    return out[:8]


def why_waiting(unfinished: Sequence[str], seconds_left: float | None, fenced: bool) -> list[str]:
    """Sentences for a task that is not queued yet."""
    out = []
    if unfinished:
        more = f" and {len(unfinished) - 5} more" if len(unfinished) > 5 else ""
        out.append(f"It waits for {', '.join(unfinished[:5])}{more}.")
    if seconds_left is not None and seconds_left > 0:
        out.append(f"It waits {seconds_left:.0f} s more (not_before, or a pause after an attempt).")
    if fenced:
        out.append("It waits until its earlier attempt is surely dead.")
    return out or ["It is about to be queued."]


def why_nothing(
    lanes: Mapping[str, Canonical], facts: NodeFacts, free_slots: Sequence[str]
) -> tuple[str, str]:
    """Why a poll got nothing: a code and a sentence."""
    if not lanes:
        return "queue_empty", "No task is queued."
    fits = [req for req in lanes.values() if not unmet(req, facts)]
    if fits:
        if any(any(s.startswith(slot_kind(r, facts)) for s in free_slots) for r in fits):
            return "taken", "Another node was faster; poll again."
        return "no_free_slot", "Queued tasks fit this node, but no slot of their kind is free."
    reasons = Counter(text for req in lanes.values() for text in unmet(req, facts))
    common = reasons.most_common(1)[0][0]
    return (
        "no_match",
        f"{len(lanes)} kind(s) of queued work do not fit this node, mostly: {common}.",
    )
