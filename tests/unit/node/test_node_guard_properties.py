"""What must hold for every sequence of facts: no work while blind, vetoed, or too soon."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace

from hypothesis import given, settings
from hypothesis import strategies as st

from rae_node.errors import NodeError
from rae_node.guard.idle import LastUse
from rae_node.guard.inputs import InputState, SeatInput
from rae_node.guard.policy import Decision, Reading, Rules, decide
from rae_node.guard.proof import Proof, Surroundings, after_login, after_unlock, doubt
from rae_node.guard.sessions import Session, presences
from rae_node.guard.sources.input import InputSource
from rae_protocol.models import Availability
from tests.unit.node.harness import ScriptedInput

IDLE_S = 600.0
RULES = Rules(True, True, {"cpu_percent": 80.0, "gpu_percent": 90.0, "vram_gb": 14.0})
HERE = Surroundings("GNOME", "gnome-shell", "6.1", "")
OWNER = Session("2", 1000, "anna", "user", "wayland", "active", True, False, "tty2", "seat0", 2)
DEVICES = (("Keys", "seat0", "keyboard"),)

MEASURES = st.dictionaries(
    st.sampled_from(["cpu_percent", "gpu_percent", "vram_gb"]), st.none() | st.floats(0, 100)
)
READINGS = st.builds(
    Reading,
    source=st.sampled_from(["logind", "input", "tty", "remote", "load", "gpu", "pause"]),
    present=st.none() | st.booleans(),
    code=st.sampled_from(["", "graphical_session", "remote_desktop"]),
    availability=st.sampled_from([Availability.OWNER, Availability.PAUSED]),
    measures=MEASURES,
)


@given(st.lists(READINGS, max_size=8), st.floats(0, 100), st.booleans(), st.booleans())
def test_there_is_no_safe_while_a_source_is_blind_or_a_veto_stands(
    readings: list[Reading], cooldown_s: float, enabled: bool, protected: bool
) -> None:
    rules = replace(RULES, enabled=enabled, detect_active_user=protected)
    if decide(rules, readings, cooldown_s).safe:
        assert enabled and protected
        for one in readings:
            assert one.present is False
            for name, value in one.measures.items():
                assert value is not None and value <= RULES.limits[name]


@given(st.lists(READINGS, max_size=8), READINGS, st.floats(0, 100), st.data())
def test_one_more_fact_of_presence_never_makes_it_safe(
    readings: list[Reading], more: Reading, cooldown_s: float, data: st.DataObject
) -> None:
    def safe(found: list[Reading]) -> tuple[bool, bool]:
        decision: Decision = decide(RULES, found, cooldown_s)
        return decision.safe, decision.may_poll

    where = data.draw(st.integers(0, len(readings)))
    longer = [*readings[:where], replace(more, present=True), *readings[where:]]
    assert safe(longer) == (False, False)
    assert safe([*readings, more]) <= safe(readings)


SESSIONS = st.lists(
    st.builds(
        Session,
        id=st.just("2"), uid=st.sampled_from([0, 1000]), user=st.sampled_from(["anna", "root"]),
        cls=st.sampled_from(["user", "greeter", "background", "user-early", "manager"]),
        type=st.sampled_from(["x11", "wayland", "tty", "unspecified"]),
        state=st.sampled_from(["active", "online", "closing"]),
        active=st.booleans(), remote=st.booleans(), tty=st.sampled_from(["", "tty2", "pts/0"]),
        seat=st.sampled_from(["", "seat0", "seat1"]), vt=st.sampled_from([0, 2]),
        service=st.sampled_from(["sshd", "xrdp-sesman", "gdm-password", "login"]),
    ),
    max_size=4,
)  # fmt: skip
DISPLAYS = st.sets(st.sampled_from(["/tmp/.X11-unix/X0", "/run/user/1000/wayland-0"]))
DOUBTS = st.dictionaries(st.sampled_from(["seat0", "seat1"]), st.sampled_from(["", "doubt"]))


@given(SESSIONS, SESSIONS, DISPLAYS, DISPLAYS, DOUBTS, st.sampled_from([(), ("root",)]))
def test_more_sessions_displays_and_doubts_never_take_a_presence_away(
    sessions: list[Session], others: list[Session], displays: set[str], more: set[str],
    doubts: dict[str, str], operators: tuple[str, ...],
) -> None:  # fmt: skip
    before = presences(sessions, displays, doubts, operators=operators)
    worse = dict.fromkeys(doubts, "doubt")
    after = presences([*sessions, *others], displays | more, worse, operators=operators)
    seatless = {one.code for one in before} - {one.code for one in after}
    # A terminal that shows a display becomes a desktop: another code, and no less a presence.
    assert not before or after, seatless
    assert len(after) >= len(before)


@dataclass
class World:
    """A machine whose clocks a test moves."""

    mono: float = 10_000.0
    asleep: float = 0.0
    wall_at: float = 1.8e9

    def wall(self) -> float:
        return self.wall_at

    def boot(self) -> float:
        return self.mono + self.asleep

    def monotonic(self) -> float:
        return self.mono

    def passes(self, seconds: float) -> None:
        self.mono += seconds
        self.wall_at += seconds

    def is_set(self, seconds: float) -> None:
        self.wall_at += seconds

    def suspends(self, seconds: float) -> None:
        self.asleep += seconds
        self.wall_at += seconds


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("passes"), st.floats(0, 400)),
        st.tuples(st.just("suspends"), st.floats(1, 1e6)),
        st.tuples(st.just("clock is set by"), st.floats(-1e7, 1e7)),
        st.tuples(st.sampled_from(["key", "stops", "starts", "refused", "allowed"]), st.just(0.0)),
        st.tuples(st.sampled_from(["login", "unlock", "logout"]), st.just(0.0)),
    ),
    max_size=30,
)


@settings(max_examples=300)
@given(STEPS)
def test_no_sequence_of_facts_and_no_clock_jump_shortens_the_quiet_time(
    steps: list[tuple[str, float]],
) -> None:
    world = World()
    state = InputState(world.mono, devices=DEVICES, seats={"seat0": SeatInput(world.mono, False)})
    link = ScriptedInput(state)
    source = InputSource(link, lambda: IDLE_S, world)
    used = LastUse()
    stamp, quiet_since, typed_at = world.wall_at, world.mono, float("-inf")
    moves = {
        "passes": world.passes, "suspends": world.suspends, "clock is set by": world.is_set,
    }  # fmt: skip
    proof: Proof | None = None
    session: Session | None = None
    proven_by: list[float] = []
    used.look({"pts/0": stamp}, world.wall(), world.monotonic())
    for what, amount in steps:
        if what in moves:
            moves[what](amount)
            if what == "suspends":  # waking is presence
                quiet_since = world.mono
        elif what == "key":
            typed_at = quiet_since = world.mono
            stamp = world.wall_at
            state = replace(state, seats={"seat0": SeatInput(world.mono, True)})
        elif what == "starts":
            quiet_since = world.mono
            state = InputState(world.mono, devices=DEVICES)
        elif what == "refused":
            state = replace(state, blind="no permission")
        elif what == "allowed":
            state = replace(state, blind="")
        hands = world.mono - typed_at <= 60
        seats = {name: replace(seat, hands=hands) for name, seat in state.seats.items()}
        state = replace(state, seats=seats)
        link.state = None if what == "stops" else state
        if what in {"login", "unlock"} and link.state is not None:
            event = after_login if what == "login" else after_unlock
            proof = event(proof, state, "seat0", HERE, world.wall())
            session = OWNER
            proven_by += [typed_at] if proof is not None else []
        elif what == "logout":
            session = None
        try:
            reading = source.read()
        except NodeError:
            reading = Reading("input", present=None)
        if state.blind or link.state is None:
            reading = replace(reading, present=None)
        idle = used.look({"pts/0": stamp}, world.wall(), world.monotonic())["pts/0"]
        open_desktops = [] if session is None else [session]
        found = presences(open_desktops, (), {"seat0": doubt(proof, link.state)})
        decision = decide(
            RULES,
            [
                reading,
                Reading("logind", bool(found), "graphical_session"),
                Reading("tty", idle < IDLE_S, "tty_active"),
            ],
            0.0,
        )
        if decision.safe:
            assert world.mono - quiet_since >= IDLE_S
            assert link.state is not None and not state.blind
            assert session is None or proven_by, "a desktop that nothing proves"


def test_the_clock_of_these_tests_is_like_the_real_one() -> None:
    world = World(time.monotonic(), 0.0, time.time())
    world.suspends(5)
    assert world.boot() - world.monotonic() == 5
