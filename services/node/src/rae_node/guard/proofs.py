"""The proofs of this node's seats: in memory, in a file, and what they were taken under."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rae_node.config.layout import write_file
from rae_node.guard import proof as rules
from rae_node.guard.inputs import InputState
from rae_node.guard.proof import Proof, Surroundings
from rae_node.guard.sessions import Session
from rae_node.host.processes import pids_below
from rae_node.supervisor.process_tree import read_proc

# One name for each desktop: a session must show the same at each login.
_COMPOSITORS = frozenset(
    {"Xorg", "Xwayland", "gnome-shell", "kwin_x11", "kwin_wayland", "plasmashell", "sddm-greeter"}
)
_AGE_S = 60.0  # of a proof: any user can lock and unlock his session in a loop
_DRIVER = Path("/sys/module/nvidia/version")
_CGROUPS = Path("/sys/fs/cgroup/user.slice")


def surroundings(session: Session, cgroups: Path = _CGROUPS) -> Surroundings:
    """What a proof would be taken under now."""
    try:
        driver = _DRIVER.read_text(encoding="ascii").strip()
    except OSError:
        driver = ""
    return Surroundings(
        session.desktop or session.type, _compositor(session, cgroups), os.uname().release, driver
    )


def _compositor(session: Session, cgroups: Path) -> str:
    """The display server or compositor of a session, by name; empty where none is known."""
    own = cgroups / f"user-{session.uid}.slice"
    for folder in (own / session.scope, own / f"user@{session.uid}.service"):
        for pid in pids_below(folder):
            name = read_proc(f"{pid}/comm").decode(errors="replace").strip()
            if name in _COMPOSITORS:
                return name
    return ""


def _same(before: Proof | None, proof: Proof | None) -> bool:
    if before is None or proof is None:
        return before is proof
    return 0 <= proof.at - before.at < _AGE_S and replace(before, at=proof.at) == proof


class Proofs:
    """By seat. Another process (`rae-node detector test`) may write the file at any time."""

    def __init__(
        self,
        file: Path,
        wall: Callable[[], float],
        here: Callable[[Session], Surroundings] = surroundings,
    ) -> None:
        self._file, self._wall, self.here = file, wall, here
        self._stamp: tuple[int, int] | None = None
        self._known: dict[str, Proof] = {}

    def all(self) -> dict[str, Proof]:
        """Every proof; none from a file that cannot be read: then input is not proven."""
        try:
            found = self._file.stat()
            stamp = found.st_mtime_ns, found.st_ino
            if stamp != self._stamp:
                self._known = rules.from_json(json.loads(self._file.read_text(encoding="utf-8")))
                self._stamp = stamp
        except (OSError, ValueError, LookupError, TypeError, AttributeError):
            self._known, self._stamp = {}, None
        return dict(self._known)

    def put(self, seat: str, proof: Proof | None) -> None:
        """Keep a proof, or drop it with None. Raises OSError.

        One that differs from the last by less than a minute of age alone is not written.
        """
        known = self.all()
        if _same(known.get(seat), proof):
            return
        if proof is None:
            del known[seat]
        else:
            known[seat] = proof
        write_file(self._file, json.dumps(rules.as_json(known), indent=2), 0o644)

    def logged_in(self, session: Session, state: InputState) -> None:
        """A session has begun on its seat. Raises OSError."""
        before, here = self.all().get(session.seat), self.here(session)
        self.put(session.seat, rules.after_login(before, state, session.seat, here, self._wall()))

    def unlocked(self, session: Session, state: InputState) -> None:
        """A session's screen was unlocked. Raises OSError."""
        before, here = self.all().get(session.seat), self.here(session)
        self.put(session.seat, rules.after_unlock(before, state, session.seat, here, self._wall()))

    def doubts(self, seats: set[str], state: InputState | None) -> dict[str, str]:
        """For each seat why its input is not proven to be seen; empty where it is.

        Drops proofs that are void. Raises OSError.
        """
        found = {}
        for seat in seats:
            known = self.all().get(seat)
            if known is not None and state is not None and rules.lost(known, state):
                self.put(seat, None)
            found[seat] = rules.doubt(known, state)
        return found
