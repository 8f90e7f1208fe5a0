"""Proof that input on a seat is seen: taken by use or by test, kept, doubted, lost."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rae_node.guard import proof as rules
from rae_node.guard.inputs import InputState, SeatInput
from rae_node.guard.proof import Proof, Surroundings, after_login, after_unlock, doubt
from rae_node.guard.proofs import Proofs
from rae_node.guard.sessions import Session

HERE = Surroundings("GNOME", "gnome-shell", "6.1.0", "550.1")
LATER = replace(HERE, kernel="6.1.1")
DEVICES = (("Keys", "seat0", "keyboard"), ("Pad", "seat0", "gamepad"))
IDLE = InputState(1.0, seats={"seat0": SeatInput(1.0, hands=False)}, devices=DEVICES)
TYPED = replace(IDLE, seats={"seat0": SeatInput(99.5, hands=True)})
ELSEWHERE = replace(IDLE, seats={"seat0": SeatInput(1.0, False), "seat1": SeatInput(99.5, True)})
PROOF = Proof("seat0", "use", 1000.0, HERE, ("Keys",))
OWNER = Session("2", 1000, "anna", "user", "wayland", "active", True, False, seat="seat0")


@pytest.mark.parametrize("event", [after_login, after_unlock])
def test_input_right_before_a_login_or_an_unlock_proves_that_it_is_seen(event: object) -> None:
    assert callable(event)
    assert event(None, TYPED, "seat0", HERE, 1000.0) == PROOF
    assert event(None, IDLE, "seat0", HERE, 1000.0) is None
    assert event(None, ELSEWHERE, "seat0", HERE, 1000.0) is None
    assert event(None, replace(TYPED, blind="no permission"), "seat0", HERE, 1000.0) is None


def test_an_autologin_keeps_the_proof_unless_kernel_driver_or_desktop_have_changed() -> None:
    assert after_login(PROOF, IDLE, "seat0", HERE, 2000.0) == PROOF
    for changed in ("kernel", "driver", "desktop", "compositor"):
        there = replace(HERE, **{changed: "another"})
        assert after_login(PROOF, IDLE, "seat0", there, 2000.0) is None
        assert after_login(PROOF, TYPED, "seat0", there, 2000.0) == replace(
            PROOF, at=2000.0, here=there
        )


def test_an_unlock_that_no_input_came_before_voids_the_proof() -> None:
    assert after_unlock(PROOF, IDLE, "seat0", HERE, 2000.0) is None


@pytest.mark.parametrize(
    ("proof", "state", "words"),
    [
        (PROOF, IDLE, ""),
        (None, IDLE, "no input was seen yet"),
        (PROOF, None, "does not answer"),
        (PROOF, replace(IDLE, blind="/dev/input/event3 may not be read"), "event3"),
        (PROOF, replace(IDLE, devices=()), "no keyboard or pointer of the proof"),
        (PROOF, replace(IDLE, devices=(("Keys", "seat1", "keyboard"),)), "another seat"),
        (PROOF, replace(IDLE, devices=(("Keys", "seat0", "gamepad"),)), "no keyboard or pointer"),
    ],
)
def test_a_doubt_says_why_and_what_to_do(
    proof: Proof | None, state: InputState | None, words: str
) -> None:
    found = doubt(proof, state)
    assert words in found and bool(words) == bool(found)
    assert not found or "; " in found or state is None or state.blind


def test_another_device_beside_those_of_the_proof_changes_nothing() -> None:
    assert doubt(PROOF, replace(IDLE, devices=(*DEVICES, ("Mouse", "seat0", "pointer")))) == ""


def proofs(folder: Path) -> Proofs:
    return Proofs(folder / "proofs.json", lambda: 1000.0, lambda _: HERE)


def test_proofs_are_kept_on_disk_and_another_process_may_write_them(tmp_path: Path) -> None:
    mine, other = proofs(tmp_path), proofs(tmp_path)
    assert mine.doubts({"seat0"}, IDLE)["seat0"]
    other.logged_in(OWNER, TYPED)
    assert mine.all() == {"seat0": PROOF}
    assert mine.doubts({"seat0"}, IDLE) == {"seat0": ""}
    mine.unlocked(OWNER, IDLE)
    assert other.all() == {}


def test_a_proof_that_says_nothing_new_is_written_once_a_minute(tmp_path: Path) -> None:
    mine = proofs(tmp_path)
    for at, written in ((0, 0), (1, 0), (59, 0), (60, 60), (61, 60), (-3600, -3600)):
        mine.put("seat0", replace(PROOF, at=1000.0 + at))
        assert mine.all()["seat0"].at == 1000.0 + written
    mine.put("seat0", replace(PROOF, at=-2600.0, how="test"))
    assert mine.all()["seat0"].how == "test", "what is new is written at once"


def test_two_who_write_proofs_at_the_same_time_leave_a_whole_file(tmp_path: Path) -> None:
    def write(number: int) -> None:
        mine = proofs(tmp_path)
        for turn in range(50):
            mine.put("seat0", replace(PROOF, at=float(1000 * number + turn)))

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    assert proofs(tmp_path).all()["seat0"].how == "use"
    assert [file.name for file in tmp_path.iterdir()] == ["proofs.json"]


@pytest.mark.parametrize("text", ["", "[]", "{}x", '{"seat0": {"how": "use"}}', '{"seat0": 1}'])
def test_a_file_that_cannot_be_read_proves_nothing(tmp_path: Path, text: str) -> None:
    (tmp_path / "proofs.json").write_text(text)
    assert proofs(tmp_path).all() == {}


def test_a_lost_permission_voids_the_proof_for_good(tmp_path: Path) -> None:
    found = proofs(tmp_path)
    found.logged_in(OWNER, TYPED)
    assert found.doubts({"seat0"}, replace(IDLE, blind="no permission"))["seat0"]
    assert "yet" in found.doubts({"seat0"}, IDLE)["seat0"]


STATES = st.sampled_from(
    [IDLE, TYPED, ELSEWHERE, replace(TYPED, blind="x"), replace(IDLE, devices=())]
)
EVENTS = st.tuples(
    st.sampled_from([after_login, after_unlock]), STATES, st.sampled_from([HERE, LATER])
)


@given(st.lists(EVENTS, max_size=12), STATES | st.none())
def test_there_is_no_proof_without_input_that_was_once_seen_at_that_seat(
    events: list[tuple[object, InputState, Surroundings]], state: InputState | None
) -> None:
    proof = None
    for event, seen, here in events:
        assert callable(event)
        proof = event(proof, seen, "seat0", here, 1.0)
    if doubt(proof, state) == "":
        assert any(seen == TYPED for _, seen, _ in events)
        assert state is not None and not state.blind


@given(st.dictionaries(st.sampled_from(["seat0", "seat1"]), st.just(PROOF)))
def test_what_is_written_is_read_again(known: dict[str, Proof]) -> None:
    known = {seat: replace(one, seat=seat) for seat, one in known.items()}
    assert rules.from_json(rules.as_json(known)) == known
