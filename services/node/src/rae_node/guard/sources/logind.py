"""Login sessions, and with them the proof that input on their seats is seen."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Callable, Collection, Sequence

from rae_node.errors import NodeError
from rae_node.guard import sockets
from rae_node.guard.inputs import InputState
from rae_node.guard.policy import Reading
from rae_node.guard.proofs import Proofs
from rae_node.guard.sessions import REMOTE_SERVERS, Session, person_of, presences, shows_desktop
from rae_node.guard.sources.input import InputLink

_UNSEEN = InputState(0.0, "it does not answer")
_NOTES, _NOTES_S = 10, 60.0  # at most so many in so long: any user can lock his session in a loop


class Notes:
    """Sentences for people, at most ten a minute; says how many it left out, once there is room."""

    def __init__(self, note: Callable[[str], None], monotonic: Callable[[], float]) -> None:
        self._note, self._monotonic = note, monotonic
        self._at: deque[float] = deque(maxlen=_NOTES)
        self._left_out = 0

    def write(self, text: str) -> None:
        """Pass one on, or leave it out."""
        self.catch_up()
        if self._room():
            self._pass_on(text)
        else:
            self._left_out += 1

    def catch_up(self) -> None:
        """Say what was left out, if there is room again."""
        if self._left_out and self._room():
            self._pass_on(f"{self._left_out} more logins, ends, locks and unlocks were left out")
            self._left_out = 0

    def _room(self) -> bool:
        return len(self._at) < _NOTES or self._monotonic() - self._at[0] >= _NOTES_S

    def _pass_on(self, text: str) -> None:
        self._at.append(self._monotonic())
        self._note(text)


class LogindSource:
    """Which sessions count by themselves: guard/sessions.py has the rules.

    `link` and `proofs`: without the input detector a desktop counts for ever. `record`: whether
    logins and unlocks are recorded as proofs; only the agent does. `note`: gets them as sentences.
    `servers`: PAM services whose sessions the `remote` source decides. `listening`: the names of
    Unix sockets at which programs listen, also in folders that are not ours to enter.
    """

    name = "logind"

    def __init__(
        self,
        sessions: Callable[[], Sequence[Session]],
        *,
        link: InputLink | None,
        proofs: Proofs,
        record: bool = True,
        operators: Collection[str] = (),
        servers: Collection[str] = REMOTE_SERVERS,
        listening: Callable[[], Sequence[str]] = sockets.unix_listening,
        note: Callable[[str], None] = lambda _: None,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._ask, self._link, self._proofs = sessions, link, proofs
        self._record, self._operators, self._servers = record, operators, servers
        self._listening, self._notes = listening, Notes(note, monotonic)
        self._seen: dict[str, Session] = {}

    def read(self) -> Reading:
        """Look. Raises NodeError when logind or the kernel does not answer, OSError."""
        sessions, displays = self._ask(), self._listening()
        state = self._state(sessions)
        if self._record:
            self._follow(sessions, state or _UNSEEN)
        seats = {
            one.seat
            for one in sessions
            if one.seat and person_of(one) and shows_desktop(one, displays)
        }
        doubts = self._proofs.doubts(seats, state)
        found = presences(
            sessions, displays, doubts, operators=self._operators, servers=self._servers
        )
        code = found[0].code if found else ""
        return Reading(self.name, bool(found), code, holders=tuple(found))

    def _state(self, sessions: Sequence[Session]) -> InputState | None:
        if self._link is None or not any(one.seat for one in sessions):
            return None
        try:
            return self._link.ask()
        except NodeError:  # the `input` source says why
            return None

    def _follow(self, sessions: Sequence[Session], state: InputState) -> None:
        """Note logins and unlocks on seats: they prove that input is seen, or that it is not."""
        self._notes.catch_up()
        here = {one.id: one for one in sessions if one.seat and person_of(one)}
        for session in here.values():
            before = self._seen.get(session.id)
            if before is None:
                self._notes.write(f"{session} is open")
                self._proofs.logged_in(session, state)
            elif before.locked != session.locked:
                self._notes.write(f"{session} was {'locked' if session.locked else 'unlocked'}")
                if before.locked:
                    self._proofs.unlocked(session, state)
        for session_id in self._seen.keys() - here.keys():
            self._notes.write(f"{self._seen[session_id]} has ended")
        self._seen = here
