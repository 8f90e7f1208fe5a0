"""Displays that listen without a session that accounts for them. Pure: facts in, presences out."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence

from rae_node.guard.policy import Holder
from rae_node.guard.remote_ways import VNC_DISPLAYS, Process
from rae_node.guard.sessions import GRAPHICAL, Session

CODE = "unaccounted_display"
X_SERVERS = frozenset(
    {
        "Xorg",
        "Xorg.bin",
        "X",
        "Xwayland",
        "Xephyr",
        "Xnest",
        "Xvfb",
        "nxagent",
        "x2goagent",
        "Xvnc-core",
    }
    | VNC_DISPLAYS
)
COMPOSITORS = frozenset(
    {
        "gnome-shell", "mutter", "kwin_wayland", "kwin_wayland_wr", "sway", "Hyprland", "niri",
        "labwc", "river", "wayfire", "weston", "cosmic-comp", "cage", "gamescope", "gamescope-wl",
        "phoc", "hikari", "enlightenment", "miriway", "mir-shell",
    }
)  # fmt: skip
# Their X servers and greeters: who logs in there gets a session of logind.
_MANAGERS = frozenset(
    f"{name}.service"
    for name in ("gdm", "gdm3", "lightdm", "sddm", "plasmalogin", "lxdm", "xdm", "wdm", "slim",
                 "nodm", "greetd", "ly", "display-manager")
)  # fmt: skip
_X = re.compile(r"/tmp/\.X11-unix/X(\d+)")  # noqa: S108 - read, never written
_WAYLAND = re.compile(r"/run/user/(\d+)/wayland-\d+")


def displays_among(paths: Iterable[str]) -> list[str]:
    """The paths that are a display's, once each, without the `@` of an abstract one."""
    found = {path.removeprefix("@") for path in paths}
    return sorted(path for path in found if _X.fullmatch(path) or _WAYLAND.fullmatch(path))


def unaccounted(
    displays: Sequence[str],
    processes: Sequence[Process],
    sessions: Sequence[Session],
    ours: Collection[int] = (),
) -> list[Holder]:
    """The displays without a session, greeter or remote-desktop server that accounts for them.

    `processes`: the display servers among them are those of `X_SERVERS` and `COMPOSITORS`; `ours`:
    pids of those that our own work started.
    """
    there = [one for one in sessions if one.state != "closing"]
    found = []
    for path in displays:
        servers = _servers_of(path, processes)
        others = [one for one in servers if one.pid not in ours]
        if (others or not servers) and not _accounted(path, others, there):
            whose = ", ".join(f"{one.comm} ({one})" for one in others) or "an unknown server"
            text = f"{whose} listens at {path}, and no login session accounts for it; end it"
            found.append(Holder(CODE, f"{text} to lend this machine"))
    return found


def _servers_of(path: str, processes: Sequence[Process]) -> list[Process]:
    if match := _X.fullmatch(path):
        every = [one for one in processes if one.comm in X_SERVERS]
        # Who does not name its display chose it itself: gdm's do.
        return [one for one in every if f":{match[1]}" in one.argv] or [
            one for one in every if not any(re.fullmatch(r":\d+", word) for word in one.argv)
        ]
    match = _WAYLAND.fullmatch(path)
    uid = int(match[1]) if match else -1
    return [one for one in processes if one.comm in COMPOSITORS and one.uid == uid]


def _accounted(path: str, servers: Sequence[Process], sessions: Sequence[Session]) -> bool:
    if servers:
        return all(_server_accounted(one, sessions) for one in servers)
    match = _WAYLAND.fullmatch(path)
    uids = {one.uid for one in sessions if _graphical(one) or (one.seat and one.vt)}
    return match is not None and int(match[1]) in uids


def _server_accounted(server: Process, sessions: Sequence[Session]) -> bool:
    folders = server.cgroup.split("/")
    return (
        # Decided by their connections: VNC, and Xorg as xrdp starts it.
        server.comm in VNC_DISPLAYS
        or any("xrdp/" in word for word in server.argv)
        or any(one.scope in folders for one in sessions if one.scope)
        or any(one.uid == server.uid for one in sessions if _graphical(one))
        or not _MANAGERS.isdisjoint(folders)
    )


def _graphical(session: Session) -> bool:
    """Whether it may have a display under its user's manager: at a seat, or gdm's from afar."""
    shown = session.type in GRAPHICAL or session.cls == "greeter"
    return shown and bool(session.seat or session.service.startswith("gdm"))
