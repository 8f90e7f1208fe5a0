"""`rae-node why`: what keeps this machine from working, since when, and what would end it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict
from datetime import datetime
from typing import TYPE_CHECKING, Any

from rae_node.guard.policy import Holder
from rae_node.guard.words import in_words

if TYPE_CHECKING:
    from rae_node.agent.agent import Agent


def why(agent: Agent) -> dict[str, Any]:
    """For programs: `working` tasks, `takes_work`, and the causes that stand against it.

    Each cause has `source`, `code`, `who`, `ends` (what would end it), `since` (unix seconds; null
    where that is not recorded), `ends_in_s` (seconds until it ends by itself if nothing else
    happens, or null) and `stops_work` (false: what runs goes on). `work_in_s`: seconds until work
    may begin; null where a cause has no end of its own.
    """
    guard, clock = agent.guard, agent.context.clock
    age_s = clock.boot() - guard.looked_at
    causes = [
        _cause(one.source, one.holder, one.since, stops=one.stops, age_s=age_s)
        for one in guard.causes
    ]
    cooldown_s = guard.cooldown_left_s()
    if guard.decision.reasons == ("starting",):
        causes.append(_cause("guard", Holder("starting", in_words("starting"), "wait"), None))
    if cooldown_s > 0:
        waits = Holder("cooldown", in_words("cooldown"), left_s=cooldown_s)
        causes.append(_cause("guard", waits, None, stops=False))
    causes += [_cause("agent", holder, None, stops=False) for holder in conditions(agent)]
    ends = [cause["ends_in_s"] for cause in causes]
    return {
        "node_id": agent.context.config.node_id,
        "working": [run.task.task_id for run in agent.runs()],
        "takes_work": not causes,
        "causes": causes,
        "work_in_s": None if None in ends else max(ends, default=0.0),
    }


def _cause(
    source: str, holder: Holder, since: float | None, *, stops: bool = True, age_s: float = 0.0
) -> dict[str, Any]:
    found = asdict(holder)
    del found["age_s"]
    left_s = found.pop("left_s")
    left_s = None if left_s is None else round(max(0.0, left_s - age_s), 1)
    return {"source": source, **found, "since": since, "ends_in_s": left_s, "stops_work": stops}


def conditions(agent: Agent) -> Iterator[Holder]:
    """What keeps new tasks away besides the guard."""
    context = agent.context
    level, minimum = context.isolation.level, context.config.min_isolation
    if not agent.link.ready.is_set():
        text = f"not registered with {context.config.rae_endpoint}: {agent.link.problem}"
        yield Holder("not_registered", text, "the agent tries again by itself")
    elif agent.link.silence:
        again = "the agent tries again by itself"
        yield Holder("control_unreachable", agent.link.silence, again)
    if not agent.admission.strong_enough():
        text = f"isolation is '{level}', below min_isolation '{minimum}': {context.isolation.why}"
        yield Holder("isolation_too_weak", text, "`rae-node doctor` says what to do")
    if agent.draining:
        text = "an operator drains this node; `raectl nodes resume` ends that"
        yield Holder("draining", text)
    if agent.stopping:
        yield Holder("stopping", "the agent ends")
    for code in agent.admission.shortages():
        yield Holder(code, in_words(code))
    if not agent.slots.free():
        yield Holder("no_slot", "every slot is taken")
    elif not agent.admission.free_slots():
        yield Holder("gpu_rest", in_words("gpu_rest"))


def obstacles(agent: Agent) -> list[str]:
    """Why no task is taken now, in words; nothing when one may come."""
    guard = agent.guard
    causes = guard.causes if not guard.decision.safe else ()
    named = {one.holder.code for one in causes}
    words = [in_words(code) for code in guard.decision.reasons if code not in named]
    words += [str(one.holder) for one in causes]
    return [*words, *(holder.who for holder in conditions(agent))]


def in_lines(answer: dict[str, Any], now: float) -> Iterator[str]:
    """For people. `now`: unix seconds."""
    working = answer["working"]
    if working:
        yield f"working: {', '.join(working)}"
    if answer["takes_work"]:
        yield "nothing stands against work: this machine takes a task when control has one"
        return
    yield f"this machine {'takes no new task' if working else 'does not work'}, because"
    for cause in answer["causes"]:
        since, left_s = cause["since"], cause["ends_in_s"]
        seen = "" if since is None else f", since {_clock(since, now)}"
        yield f"- {cause['who']} [{cause['source']}: {cause['code']}{seen}]"
        if cause["ends"]:
            yield f"    what ends it: {cause['ends']}"
        if left_s is not None:
            yield f"    ends by itself in {lasting(left_s)}"
    left_s = answer["work_in_s"]
    if left_s is not None:
        at = _clock(now + left_s, now)
        yield f"work may begin in {lasting(left_s)}, at {at}, if nothing else happens"
    else:
        yield f"{'another task' if working else 'work'} may begin when these are over"


def lasting(seconds: float) -> str:
    """A duration as a person says it."""
    whole = round(seconds)
    if whole < 120:
        return f"{whole} s"
    if whole < 7200:
        return f"{whole / 60:.0f} min"
    if whole < 48 * 3600:
        return f"{whole // 3600} h {whole % 3600 // 60} min"
    return f"{whole / 86400:.0f} days"


def _clock(at: float, now: float) -> str:
    moment, today = datetime.fromtimestamp(round(at)), datetime.fromtimestamp(now)
    if moment.date() == today.date():
        return f"{moment:%H:%M:%S}"
    return f"{moment:%a %d %b %H:%M}" if moment.year == today.year else f"{moment:%d %b %Y}"
