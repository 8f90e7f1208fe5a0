"""Sessions, as systemd-logind tells them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from rae_node.errors import NodeError
from rae_node.guard.policy import Reading

_NEEDED = ("Id", "Class", "Type", "State", "Active", "Remote")
_PROPERTIES = (*_NEEDED, "TTY", "Seat", "VTNr", "User", "Name", "Service")
_GRAPHICAL = frozenset({"x11", "wayland", "mir"})
_ENDING = frozenset({"closing"})
_TIMEOUT_S = 2.0


def run_loginctl(argv: Sequence[str]) -> str:
    """What `loginctl` prints. Raises NodeError."""
    try:
        done = subprocess.run(
            ["loginctl", *argv],
            stdin=subprocess.DEVNULL,
            capture_output=True,
            timeout=_TIMEOUT_S,
            check=True,
            env={"PATH": os.environ.get("PATH", os.defpath), "LC_ALL": "C"},
        )
    except (OSError, subprocess.SubprocessError) as error:
        said = getattr(error, "stderr", None) or str(error).encode()
        text = f"loginctl {argv[0]} fails ({said.decode(errors='replace').strip()})"
        raise NodeError("blind", f"{text}; see `systemctl status systemd-logind`") from error
    return done.stdout.decode(errors="replace")


class LogindSource:
    """An active graphical session, and a remote one without a terminal, is its owner's presence.

    One that `startx` or a compositor was started in stays a tty session to logind: on a seat it
    counts as graphical while a display server listens.

    Of any class, a greeter's too, and locked or not: without input times nobody can tell whether
    it is idle, and IdleHint is often never set. A session that was switched away from does not
    count. Sessions in terminals, near and far, are judged by the use of these (tty.py); a remote
    session that has none (remote desktop, `ssh HOST COMMAND`) counts as long as it is there, unless
    it is sshd's for one of the `operators`: that is how a playbook comes in.
    """

    name = "logind"

    def __init__(
        self,
        run: Callable[[Sequence[str]], str] = run_loginctl,
        unix_sockets: Path = Path("/proc/net/unix"),
        operators: Collection[str] = (),
    ) -> None:
        self._run, self._unix_sockets, self._operators = run, unix_sockets, operators

    def read(self) -> Reading:
        """Ask. Raises NodeError when there is no answer, OSError."""
        try:
            sessions = self._sessions()
        except NodeError:  # one may have ended between the two questions
            sessions = self._sessions()
        # The kernel's list: it holds what listens, also in folders that are not ours to enter.
        listening = self._unix_sockets.read_text(encoding="utf-8", errors="replace")
        codes = [judge(session, listening, self._operators) for session in sessions]
        codes = [code for code in codes if code]
        return Reading(self.name, bool(codes), codes[0] if codes else "")

    def _sessions(self) -> list[dict[str, str]]:
        lines = self._run(["list-sessions", "--no-legend", "--no-pager"]).splitlines()
        ids = [line.split()[0] for line in lines if line.strip()]
        if not ids:
            return []
        wanted = [word for name in _PROPERTIES for word in ("-p", name)]
        answer = self._run(["show-session", *wanted, *ids])
        found = [_parsed(block) for block in answer.strip().split("\n\n")]
        if {session.get("Id") for session in found} != set(ids):
            raise NodeError("blind", "loginctl left out a session; see `loginctl list-sessions`")
        return found


def judge(session: dict[str, str], listening: str = "", operators: Collection[str] = ()) -> str:
    """The reason code of a session; nothing when it does not count. Raises NodeError.

    `listening`: /proc/net/unix; `operators`: users whose commands by ssh are the operator's.
    """
    missing = [name for name in _NEEDED if not session.get(name)]
    if missing:
        text = f"loginctl does not tell {', '.join(missing)} of a session"
        raise NodeError("blind", f"{text}; see `loginctl show-session`")
    if session["State"] in _ENDING or session["Class"].startswith(("manager", "background")):
        return ""
    remote = session["Remote"] == "yes"
    graphical = session["Type"] in _GRAPHICAL or (
        session["Type"] == "tty"
        and bool(session.get("Seat"))
        and session.get("VTNr", "0") != "0"
        and any(name in listening for name in _displays(session.get("User", "")))
    )
    if graphical and (remote or session["Active"] == "yes"):
        return "graphical_session"
    if not remote or session.get("TTY"):
        return ""
    playbook = session.get("Service") == "sshd" and session.get("Name") in operators
    return "" if playbook else "remote_session"


def _displays(uid: str) -> tuple[str, str]:
    return "/tmp/.X11-unix/X", f"/run/user/{uid}/wayland-"  # noqa: S108 - read, never written


def _parsed(block: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in block.splitlines())
    return {name: value for name, _, value in pairs}
