"""Which login sessions are their owner's presence. Pure: sessions in, presences out."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from rae_node.guard.policy import Holder

GRAPHICAL = frozenset({"x11", "wayland", "mir"})
# A lock screen and a greeter belong to no person; managers and background sessions have no screen.
_NO_PERSON = ("greeter", "lock-screen", "manager", "background")
# These make sessions that stay when the client disconnects: the `remote` source decides them by
# their connections.
REMOTE_SERVERS = ("xrdp", "tigervnc", "gdm")


@dataclass(frozen=True, slots=True)
class Session:
    """A session as logind describes it; `seat`, `tty`, `scope` and `desktop` may be empty.

    `scope`: its unit, such as `session-2.scope`.
    """

    id: str
    uid: int
    user: str
    cls: str
    type: str
    state: str
    active: bool
    remote: bool
    tty: str = ""
    seat: str = ""
    vt: int = 0
    service: str = ""
    scope: str = ""
    desktop: str = ""
    locked: bool = False

    def __str__(self) -> str:
        where = f" on {self.seat}" if self.seat else ""
        return f"session {self.id} of {self.user}{where} ({self.desktop or self.type})"


def person_of(session: Session) -> bool:
    """Whether a person has the session open."""
    return session.state != "closing" and not session.cls.startswith(_NO_PERSON)


def shows_desktop(session: Session, displays: Collection[str]) -> bool:
    """Whether it is a graphical session, also one that `startx` made of a terminal's.

    `displays`: paths of the sockets at which display servers listen.
    """
    if session.type in GRAPHICAL:
        return True
    own = "/tmp/.X11-unix/X", f"/run/user/{session.uid}/wayland-"  # noqa: S108 - read, never written
    on_screen = session.type == "tty" and session.seat and session.vt
    return bool(on_screen) and any(path.lstrip("@").startswith(own) for path in displays)


def presences(
    sessions: Sequence[Session],
    displays: Collection[str],
    doubts: Mapping[str, str],
    *,
    operators: Collection[str] = (),
    servers: Collection[str] = REMOTE_SERVERS,
) -> list[Holder]:
    """The sessions that count by themselves, whatever input was seen.

    `doubts`: for each seat why its input is not proven to be seen, with the way out; empty where it
    is proven. A desktop on a proven seat counts by its last input alone, which the `input` source
    watches; on any other seat it counts for ever. A terminal on a seat counts by its last input,
    too (`tty`). `servers`: beginnings of PAM services whose desktops without a seat the `remote`
    source decides. `operators`: users whose commands by ssh, without a terminal, are playbooks.
    """
    found = []
    for one in filter(person_of, sessions):
        desktop = shows_desktop(one, displays)
        if desktop and one.seat:
            if doubt := doubts.get(one.seat, "no input detector covers this seat"):
                found.append(Holder("graphical_session", f"{one}: {doubt}"))
        elif desktop or one.type in GRAPHICAL:
            if not one.service.startswith(tuple(servers)):
                found.append(Holder("graphical_session", f"{one}, without a seat"))
        elif one.remote and not (
            _playbook(one, operators) or one.service.startswith(tuple(servers))
        ):
            found.append(Holder("remote_session", str(one)))
    return found


def _playbook(session: Session, operators: Collection[str]) -> bool:
    return session.service == "sshd" and not session.tty and session.user in operators
