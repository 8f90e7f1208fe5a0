"""Is input on a seat proven to be seen? Rules for taking, keeping and losing that proof. Pure."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rae_node.guard.inputs import InputState

TEST = "sudo rae-node detector test"
_NEXT = f"log in or unlock once at that desk, or run `{TEST}` there"


@dataclass(frozen=True, slots=True)
class Surroundings:
    """What a proof was taken under. `kernel` and `driver`: versions; `driver` may be empty."""

    desktop: str
    compositor: str
    kernel: str
    driver: str


@dataclass(frozen=True, slots=True)
class Proof:
    """Input on `seat` was seen. `how`: by `use` or by `test`; `at`: unix seconds, for people."""

    seat: str
    how: str
    at: float
    here: Surroundings
    devices: tuple[str, ...]


def after_login(
    proof: Proof | None, state: InputState, seat: str, here: Surroundings, wall: float
) -> Proof | None:
    """A session on the seat is new: input that came right before it proves that input is seen.

    Without such input (autologin) an earlier proof holds on, unless kernel, driver or desktop have
    changed since it was taken.
    """
    kept = proof if proof is not None and proof.here == here else None
    return after_unlock(proof, state, seat, here, wall) or kept


def after_unlock(
    proof: Proof | None, state: InputState, seat: str, here: Surroundings, wall: float
) -> Proof | None:
    """A screen was unlocked: by input that was seen, or the detector misses what goes on there."""
    if _typed(state, seat):
        return Proof(seat, "use", wall, here, state.hands_of(seat))
    return None


def doubt(proof: Proof | None, state: InputState | None) -> str:
    """Why input on a seat is not proven to be seen, with the way out; empty where it is."""
    if state is None:
        return "the input detector does not answer; see `systemctl status rae-input`"
    if state.blind:
        return f"the input detector cannot see: {state.blind}"
    if proof is None:
        return f"no input was seen yet right before a login or unlock there; {_NEXT}"
    if lost(proof, state):
        return f"devices of {proof.seat} went to another seat since the proof; {_NEXT}"
    if not set(proof.devices) & set(state.hands_of(proof.seat)):
        return f"no keyboard or pointer of the proof is connected; plug one in, or {_NEXT}"
    return ""


def lost(proof: Proof, state: InputState) -> bool:
    """Whether the proof is void: no permission any more, or a device on another seat alone."""
    moved = [state.seats_of(name) for name in proof.devices]
    return bool(state.blind) or any(seats and proof.seat not in seats for seats in moved)


def _typed(state: InputState, seat: str) -> bool:
    known = state.seats.get(seat)
    return not state.blind and known is not None and known.hands


def as_json(proofs: Mapping[str, Proof]) -> dict[str, object]:
    """For the file."""
    return {
        seat: {
            "how": one.how, "at": one.at, "devices": list(one.devices),
            "desktop": one.here.desktop, "compositor": one.here.compositor,
            "kernel": one.here.kernel, "driver": one.here.driver,
        }
        for seat, one in proofs.items()
    }  # fmt: skip


def from_json(said: object) -> dict[str, Proof]:
    """Out of the file. Raises ValueError, LookupError, TypeError, AttributeError."""
    if not isinstance(said, dict):
        raise ValueError("no proofs")
    return {
        str(seat): Proof(
            str(seat), str(one["how"]), float(one["at"]),
            Surroundings(*(str(one[k]) for k in ("desktop", "compositor", "kernel", "driver"))),
            tuple(str(name) for name in one["devices"]),
        )
        for seat, one in said.items()
    }  # fmt: skip
