"""Sessions, as systemd-logind tells them."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Callable, Sequence

from rae_node.errors import NodeError
from rae_node.guard.policy import Reading

_PROPERTIES = ("Id", "Class", "Type", "State", "Active", "Remote", "TTY")
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

    Of any class, a greeter's too, and locked or not: without input times nobody can tell whether
    it is idle, and IdleHint is often never set. A session that was switched away from does not
    count. Sessions in terminals, near and far, are judged by the use of these (tty.py); a remote
    session that has none (remote desktop, `ssh HOST COMMAND`) counts as long as it is there.
    """

    name = "logind"

    def __init__(self, run: Callable[[Sequence[str]], str] = run_loginctl) -> None:
        self._run = run

    def read(self) -> Reading:
        """Ask. Raises NodeError when there is no answer."""
        try:
            sessions = self._sessions()
        except NodeError:  # one may have ended between the two questions
            sessions = self._sessions()
        codes = [code for session in sessions if (code := judge(session))]
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


def judge(session: dict[str, str]) -> str:
    """The reason code of a session; nothing when it does not count. Raises NodeError."""
    missing = [name for name in _PROPERTIES if name != "TTY" and not session.get(name)]
    if missing:
        text = f"loginctl does not tell {', '.join(missing)} of a session"
        raise NodeError("blind", f"{text}; see `loginctl show-session`")
    if session["State"] in _ENDING or session["Class"].startswith(("manager", "background")):
        return ""
    remote = session["Remote"] == "yes"
    if session["Type"] in _GRAPHICAL and (remote or session["Active"] == "yes"):
        return "graphical_session"
    return "remote_session" if remote and not session.get("TTY") else ""


def _parsed(block: str) -> dict[str, str]:
    pairs = (line.partition("=") for line in block.splitlines())
    return {name: value for name, _, value in pairs}
