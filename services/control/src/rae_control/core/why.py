"""Why a task does not run, in plain words, for `GET /tasks/<id>` and `raectl why`."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from rae_control.core.matching import Canonical, NodeFacts, slot_kind, unmet, vram_needed_mb


@dataclass(frozen=True, slots=True)
class NodeNow:
    """A node at this moment: whether it may get work, and what it would say.

    `free_slots` are those that its open poll offers. `reasons` are the guard's words, `note` the
    operator's (drain) or control's (cordon). `polls` says whether it asks for work now,
    `vram_free_mb` what it measured then. `claims_trust`: its own
    configuration says trusted, whatever the enrolment says.
    """

    facts: NodeFacts
    state: str
    availability: str
    free_slots: Sequence[str]
    reasons: Sequence[str] = ()
    note: str | None = None
    polls: bool = True
    vram_free_mb: float | None = None
    claims_trust: bool = False


_AWAY = {
    "owner": "its owner is there",
    "paused": "its owner paused it",
    "blind": "it cannot tell whether its owner is there",
}
_BY_REASON = {
    "owner_never": "its owner's rules keep work away",
    "owner_hours": "its owner's rules keep work away",
    "blind_owner": "its owner.yaml has a mistake",
    "cooldown": "it was in use until a while ago",
    **dict.fromkeys(("cpu_percent_high", "gpu_percent_high", "vram_gb_high"), "it is busy"),
}
_GONE = frozenset({"offline", "enrolled", "revoked"})


def why_queued(
    req: Canonical,
    nodes: Sequence[NodeNow],
    ahead: int,
    failed_on: Collection[str] = (),
    *,
    leases: bool = True,
) -> list[str]:
    """Sentences, the most telling first. `ahead` counts tasks before this one in its lane.

    `failed_on`: the nodes where the task failed while others still come first (ledger/claim.py).
    `leases`: False while control leases nothing, after a restore.
    """
    online = [node for node in nodes if node.state not in _GONE]
    gone = [
        f"Node {node.facts.node_id} would fit, but it is {node.state}."
        for node in nodes
        if node.state in _GONE and node.state != "enrolled" and not unmet(req, node.facts)
    ]
    if not online:
        return ["No node is online.", *gone][:8]
    fitting = []
    misfits: Counter[str] = Counter()
    for node in online:
        missing = unmet(req, node.facts)
        if missing:
            misfits.update(missing)
        else:
            fitting.append(node)
    if fitting:
        return _why_busy(req, fitting, ahead, failed_on, leases)
    sentences = [f"None of the {len(online)} online node(s) fits:"]
    sentences += [f"{what} ({count} of them)" for what, count in misfits.most_common(5)]
    if req.get("trusted"):
        sentences += [
            f"Node {node.facts.node_id} calls itself trusted, but was not enrolled with --trusted."
            for node in online
            if node.claims_trust and not node.facts.trusted
        ]
    return [*sentences, *gone][:8]


def _why_busy(
    req: Canonical,
    fitting: Sequence[NodeNow],
    ahead: int,
    failed_on: Collection[str],
    leases: bool,
) -> list[str]:
    out: list[str] = []
    free: list[str] = []
    others = any(n.facts.node_id not in failed_on and _takes_work(n) for n in fitting)
    for node in fitting:
        hindrance = _hindrance(req, node)
        if others and node.facts.node_id in failed_on:
            hindrance = "the task failed there, so other nodes come first for ten minutes"
        if hindrance is None:
            free.append(node.facts.node_id)
        else:
            out.append(f"Node {node.facts.node_id} fits, but {hindrance}.")
    if ahead:
        out.insert(0, f"{ahead} task(s) of the same lane are before it.")
    if free and not ahead:
        then = ": the task starts at its next poll" if leases else ""
        return [f"Node {free[0]} fits and is free{then}."]
    return out[:8]


def _takes_work(node: NodeNow) -> bool:
    return node.state == "online" and node.availability == "open"


def _hindrance(req: Canonical, node: NodeNow) -> str | None:
    """What keeps a fitting node from taking the task now."""
    if node.state != "online":
        return f"it is {node.state}" + (f": {node.note}" if node.note else "")
    if node.availability != "open":
        words = f" ({', '.join(node.reasons[:3])})" if node.reasons else ""
        away = _AWAY.get(node.availability, node.availability)
        return f"{_BY_REASON.get(node.reasons[0], away) if node.reasons else away}{words}"
    if not node.polls:
        return "it does not ask for work at this moment"
    if not any(slot.startswith(slot_kind(req, node.facts)) for slot in node.free_slots):
        return "it offers no free slot of that kind"
    needed = vram_needed_mb(req)
    if node.vram_free_mb is not None and needed > node.vram_free_mb:
        free, wanted = node.vram_free_mb / 1024, needed / 1024
        return f"only {free:.1f} of the {wanted:.1f} GB of VRAM that it needs are free now"
    return None


def why_waiting(
    unfinished: Sequence[str], seconds_left: float | None, fence: str | None, pause: str | None
) -> list[str]:
    """Sentences for a task that is not queued yet.

    `fence` names the node where its earlier attempt may live; `pause` what the pause is for, None
    when it is the submitter's own not_before.
    """
    out = []
    if unfinished:
        more = f" and {len(unfinished) - 5} more" if len(unfinished) > 5 else ""
        out.append(f"It waits for {', '.join(unfinished[:5])}{more}.")
    if seconds_left is not None and seconds_left > 0:
        what = "as its submitter asked (not_before)" if pause is None else f"a pause after {pause}"
        out.append(f"It waits {seconds_left:.0f} s more, {what}.")
    if fence is not None:
        out.append(f"It waits until its earlier attempt on {fence} is surely dead.")
    return out or ["It is about to be queued."]


def pause_after(reason: str, failures: int, max_attempts: int, in_row: int) -> str | None:
    """What a task's pause is for, by the reason of its last transition."""
    if reason in {"submitted", "requeued", "due"}:
        return None
    if in_row:
        return f"{in_row} interruptions in a row, the last: {reason}"
    return f"failure {failures} of {max_attempts}: {reason}"


def why_nothing(
    lanes: Mapping[str, Canonical], facts: NodeFacts, free_slots: Sequence[str]
) -> tuple[str, str]:
    """Why a poll got nothing: a code and a sentence."""
    if not lanes:
        return "queue_empty", "No task is queued."
    fits = [req for req in lanes.values() if not unmet(req, facts)]
    if fits:
        if any(any(s.startswith(slot_kind(r, facts)) for s in free_slots) for r in fits):
            return "taken", "Other nodes took it, or come first for tasks that failed here."
        return "no_free_slot", "Queued tasks fit this node, but no slot of their kind is free."
    reasons = Counter(text for req in lanes.values() for text in unmet(req, facts))
    common = reasons.most_common(1)[0][0]
    return (
        "no_match",
        f"{len(lanes)} kind(s) of queued work do not fit this node, mostly: {common}.",
    )
