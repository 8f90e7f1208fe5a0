"""What the input detector publishes, and what follows from it. Pure."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field

from rae_node.guard.policy import Holder, Reading
from rae_node.guard.words import shown
from rae_node.input.activity import HANDS

CODE = "input_recent"
_LONGEST = 300  # characters of a sentence


@dataclass(frozen=True, slots=True)
class SeatInput:
    """A seat: `last` input (CLOCK_MONOTONIC), and whether a keyboard or pointer made it lately."""

    last: float
    hands: bool


@dataclass(frozen=True, slots=True)
class InputState:
    """One message of the detector (input/monitor.py). `devices`: name, seat, kind."""

    since: float
    blind: str = ""
    seats: Mapping[str, SeatInput] = field(default_factory=dict)
    devices: tuple[tuple[str, str, str], ...] = ()
    ignored: tuple[str, ...] = ()

    def hands_of(self, seat: str) -> tuple[str, ...]:
        """Names of the keyboards and pointers of a seat."""
        return tuple(sorted({name for name, at, kind in self.devices if (at, kind) in _on(seat)}))

    def seats_of(self, name: str) -> set[str]:
        """Where devices of this name are."""
        return {seat for one, seat, _ in self.devices if one == name}


def _on(seat: str) -> set[tuple[str, str]]:
    return {(seat, kind) for kind in HANDS}


def parse(message: bytes) -> InputState:
    """A message without control characters. Raises ValueError, LookupError, TypeError."""
    said = json.loads(message)
    return InputState(
        float(said["since"]),
        shown(str(said["blind"]), _LONGEST),
        {
            shown(str(name)): SeatInput(float(seat["last"]), bool(seat["hands"]))
            for name, seat in said["seats"].items()
        },
        tuple(
            (shown(str(name)), shown(str(seat)), shown(str(kind)))
            for name, seat, kind in said["devices"]
        ),
        tuple(shown(str(name), _LONGEST) for name in said["ignored"]),
    )


def reading(state: InputState, now: float, woke_at: float, idle_s: float) -> Reading:
    """Present within `idle_s` after the last input, the detector's start, or the machine's waking.

    The start counts where there is something that could have been used before.

    `now`, `woke_at`: seconds on CLOCK_MONOTONIC, which stands still in a suspend; so a suspend adds
    nothing to the quiet time, and waking, which takes a hand or a timer, begins it again.
    """
    last = {f"input on {name}": seat.last for name, seat in state.seats.items()}
    if state.devices:  # any of them may have been used before it saw
        last["start of the input detector"] = state.since
    last["waking from suspend"] = woke_at
    ends = f"{idle_s / 60:g} minutes without input"
    recent = [
        Holder(CODE, f"{what}: {age_s:.0f} s ago", ends, at + idle_s - now, age_s)
        for what, at in sorted(last.items(), key=lambda one: -one[1])
        for age_s in [max(0.0, now - at)]
        if now - at < idle_s
    ]
    return Reading("input", bool(recent), CODE, holders=tuple(recent))
