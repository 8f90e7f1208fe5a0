"""`rae-node detector`: is input on this machine's seats seen, and the test that proves it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

from rae_node.errors import NodeError
from rae_node.guard import proof as rules
from rae_node.guard.inputs import InputState
from rae_node.guard.proof import Proof
from rae_node.guard.proofs import Proofs
from rae_node.guard.sessions import GRAPHICAL, Session, person_of
from rae_node.guard.sources.input import InputLink
from rae_node.input.activity import GAMEPAD, HANDS, KEYBOARD, POINTER
from rae_protocol.clock import Clock

_QUIET_S = 1.5  # rae-input pauses for a second after input
_STEPS = (
    (KEYBOARD, "Press one key, such as Shift"),
    (POINTER, "Move the mouse a little"),
    (GAMEPAD, "Move a stick of the gamepad to its end"),
)
_LOCKS = ((True, "lock", "Lock the screen"), (False, "unlock", "Unlock the screen"))


@dataclass(frozen=True, slots=True)
class SeatStatus:
    """A seat that a person can sit at. `why` and `next`: empty where input is proven to be seen.

    `user`: whose desktop is open there, locked or not; empty where none is.
    """

    seat: str
    user: str
    proven: bool
    how: str
    why: str
    next: str


@dataclass(frozen=True, slots=True)
class Eyes:
    """What the detector verbs look with. `news` is set when link or sessions have some."""

    link: InputLink
    sessions: Callable[[], Sequence[Session]]
    seats: Callable[[], Sequence[str]]
    proofs: Proofs
    clock: Clock
    news: threading.Event


def status(eyes: Eyes) -> tuple[str, list[SeatStatus], InputState | None]:
    """Why the detector is blind (empty when it sees), every graphical seat, and its state.

    Raises NodeError when logind does not answer, OSError.
    """
    state, blind = None, ""
    try:
        state = eyes.link.ask()
        blind = state.blind
    except NodeError as error:
        blind = error.message
    found = []
    proofs, sessions = eyes.proofs.all(), eyes.sessions()
    for seat in eyes.seats():
        known = proofs.get(seat)
        why, _, way_out = rules.doubt(known, state).partition("; ")
        how = known.how if known is not None and not why else ""
        desktop = _desktop_of(sessions, seat)
        user = desktop.user if desktop.type in GRAPHICAL else ""
        found.append(SeatStatus(seat, user, not why, how, why, way_out))
    return blind, found, state


def as_json(blind: str, seats: Sequence[SeatStatus]) -> dict[str, Any]:
    """For programs."""
    return {"blind": blind, "seats": [asdict(one) for one in seats]}


def in_words(blind: str, seats: Sequence[SeatStatus], state: InputState | None) -> Iterator[str]:
    """For people."""
    if blind:
        yield f"the input detector sees nothing: {blind}"
    if not seats:
        yield "no seat of this machine can show a desktop; there is nothing to prove"
    for one in seats:
        if one.proven:
            yield f"{one.seat}: input is proven to be seen, by {one.how}"
        else:
            yield f"{one.seat}: a desktop there counts as in use for ever: {one.why}"
            yield f"  next: {one.next}"
    for name, seat, kind in state.devices if state is not None else ():
        yield f"{seat}: {kind} '{name}'"
    for name in state.ignored if state is not None else ():
        yield f"ignored, for it moves untouched: {name}"


def test(eyes: Eyes, seat: str, wait_s: float, say: Callable[[str], None]) -> bool:
    """Ask for input, say which source saw it, and store the proof. Whether there is one now.

    Raises NodeError when the detector or logind does not answer, OSError.
    """
    state = eyes.link.ask()
    if state.blind:
        raise NodeError("blind", state.blind)
    seen: list[bool] = []
    for kind, prompt in _STEPS:
        if not any((at, one) == (seat, kind) for _, at, one in state.devices):
            say(f"skipped: no {kind} is connected to {seat}")
            continue
        found = _await_input(eyes, seat, wait_s, partial(say, f"{prompt} …"))
        say(_verdict("rae-input", found, wait_s))
        if kind in HANDS:
            seen.append(found is not None)
    _test_lock(eyes, seat, wait_s, say)
    if not seen or not all(seen):
        why = "a key or a movement was not seen" if seen else f"{seat} has no keyboard or pointer"
        say(f"No proof: {why}. The desktop on {seat} counts as in use for ever.")
        return False
    state = eyes.link.ask()
    here = eyes.proofs.here(_desktop_of(eyes.sessions(), seat))
    proof = Proof(seat, "test", eyes.clock.wall(), here, state.hands_of(seat))
    eyes.proofs.put(seat, proof)
    say(f"Proof stored: input on {seat} is seen ({', '.join(proof.devices)}).")
    return True


def _await_input(eyes: Eyes, seat: str, wait_s: float, prompt: Callable[[], None]) -> float | None:
    """Seconds from the prompt until the detector saw input on the seat; None when it did not."""

    def last() -> float:
        known = eyes.link.ask().seats.get(seat)
        return float("-inf") if known is None else known.last

    limit = eyes.clock.monotonic() + wait_s
    while eyes.clock.monotonic() - last() < _QUIET_S and eyes.clock.monotonic() < limit:
        eyes.news.wait(0.1)  # what is still pressed or moved belongs to the step before
        eyes.news.clear()
    before = last()
    prompt()
    asked_at = eyes.clock.monotonic()
    while (left := asked_at + wait_s - eyes.clock.monotonic()) > 0:
        eyes.news.clear()
        if last() not in {before, float("-inf")}:
            return eyes.clock.monotonic() - asked_at
        eyes.news.wait(left)
    return None


def _test_lock(eyes: Eyes, seat: str, wait_s: float, say: Callable[[str], None]) -> None:
    """Whether this desktop reports locks to logind: good to know, and no condition."""
    desktop = _desktop_of(eyes.sessions(), seat)
    if desktop.type not in GRAPHICAL:
        say(f"skipped: no desktop is open on {seat}, so there is no screen to lock")
        return
    for locked, verb, prompt in _LOCKS:
        say(f"{prompt} …")
        asked_at = eyes.clock.monotonic()
        found = None
        while found is None and (left := asked_at + wait_s - eyes.clock.monotonic()) > 0:
            eyes.news.clear()
            if any(one.id == desktop.id and one.locked is locked for one in eyes.sessions()):
                found = eyes.clock.monotonic() - asked_at
            else:
                eyes.news.wait(left)
        if found is None:
            say(f"logind saw no {verb} within {wait_s:g} s: this desktop does not report it")
            say("(then logins alone renew the proof, which is fine)")
            return
        say(_verdict("logind", found, wait_s))


def _verdict(source: str, found: float | None, wait_s: float) -> str:
    if found is None:
        return f"  NOT seen within {wait_s:g} s"
    return f"  seen by {source} after {found * 1000:.0f} ms"


def _desktop_of(sessions: Sequence[Session], seat: str) -> Session:
    """The session whose desktop is on the seat; an empty one where there is none."""
    here = [one for one in sessions if one.seat == seat and person_of(one)]
    here.sort(key=lambda one: (one.type in GRAPHICAL, one.active), reverse=True)
    empty = Session("", 0, "", "", "", "", False, False, seat=seat)
    return here[0] if here else empty
