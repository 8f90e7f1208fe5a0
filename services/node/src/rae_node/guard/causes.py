"""Why the machine counts as in use: each cause, since when, and when it may end. Pure."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from rae_node.guard.policy import Holder, Reading, Rules
from rae_node.guard.words import in_words, measured, shown

_LONGEST = 500  # characters
_MOST = 20  # holders of one source: any user can make thousands of displays or terminals
_DOCTOR = "`rae-node doctor` says what to do"
_CORRECT = "correct the file; it counts as soon as it is saved"


@dataclass(frozen=True, slots=True)
class Cause:
    """`since`: unix seconds. `stops`: whether it ends running work; if not, only new work waits."""

    source: str
    holder: Holder
    since: float
    stops: bool


def found_in(
    rules: Rules, readings: Sequence[Reading], problems: Mapping[str, str]
) -> Iterator[tuple[str, Holder, bool]]:
    """Source, cause, and whether it ends running work. `problems`: why a source is blind."""
    runtime = "runtime.yaml"
    if not rules.enabled:
        ends = f"set automation.enabled: true in {runtime}"
        yield runtime, Holder("automation_disabled", in_words("automation_disabled"), ends), True
    if not rules.detect_active_user:
        ends = f"set safety.detect_active_user: true in {runtime}"
        code = "user_protection_inactive"
        yield runtime, Holder(code, in_words(code), ends), True
    for one in readings:
        if one.present is None:
            code = f"blind_{one.source}"
            why = problems.get(one.source) or in_words(code)
            ends = _CORRECT if one.source == "owner" else _DOCTOR
            yield one.source, Holder(code, why, ends), True
        elif one.present:
            code = one.code or one.source
            for holder in _some(one.holders) or (Holder(code, in_words(code)),):
                yield one.source, holder, True
        yield from _measures(rules, one)


def _some(holders: tuple[Holder, ...]) -> tuple[Holder, ...]:
    """All of a few; of many the first ones, and one that stands for the rest."""
    shown_too, rest = holders[:_MOST], holders[_MOST:]
    if not rest:
        return shown_too
    ends = [one.left_s for one in rest]
    left_s = None if None in ends else max(one for one in ends if one is not None)
    return *shown_too, Holder(rest[0].code, f"more of the kind: {len(rest)}", left_s=left_s)


def _measures(rules: Rules, one: Reading) -> Iterator[tuple[str, Holder, bool]]:
    for name, value in one.measures.items():
        limit = rules.limits.get(name)
        if value is None:
            code = f"blind_{name}"
            yield one.source, Holder(code, in_words(code), _DOCTOR), True
        elif limit is not None and not value <= limit:  # NaN is not safe either
            yield one.source, _above(name, value, limit), True
    for name, value in one.peaks.items():
        limit, mean = rules.limits.get(name), one.measures.get(name)
        if limit is not None and not value <= limit and (mean is None or mean <= limit):
            yield one.source, _above(name, value, limit), False


def _above(name: str, value: float, limit: float) -> Holder:
    return Holder(
        f"{name}_high",
        f"{measured(name)}: {value:.0f}, above the limit of {limit:g}",
        "other programs use less; the limit stands in runtime.yaml or owner.yaml",
    )


def follow(
    before: Sequence[Cause], found: Iterator[tuple[str, Holder, bool]], now: float
) -> tuple[Cause, ...]:
    """The causes of this look; one that was there before keeps its time. `now`: unix seconds."""
    since = {_identity(one.source, one.holder): one.since for one in before}
    clean = ((source, _printable(holder), stops) for source, holder, stops in found)
    return tuple(
        Cause(source, holder, min(now, since.get(_identity(source, holder), now)), stops)
        for source, holder, stops in clean
    )


def _printable(holder: Holder) -> Holder:
    """Programs choose their own names, and files theirs: none may write to a terminal."""
    who, ends = shown(holder.who, _LONGEST), shown(holder.ends, _LONGEST)
    return replace(holder, who=who, ends=ends)


def _identity(source: str, holder: Holder) -> tuple[str, str, str]:
    """What stays the same of a cause: its text after the first colon says how it is just now."""
    return source, holder.code, holder.who.partition(": ")[0]
