"""Displays that listen: which session, greeter or server accounts for each."""

from __future__ import annotations

import pytest

from rae_node.guard.displays import displays_among, unaccounted
from rae_node.guard.remote_ways import Process
from rae_node.guard.sessions import Session

X0, W0 = "/tmp/.X11-unix/X0", "/run/user/1000/wayland-0"
MANAGER = "/user.slice/user-1000.slice/user@1000.service/app.slice/a.service"
SCOPE = "/user.slice/user-1000.slice/session-2.scope"


def session(**facts: object) -> Session:
    given: dict[str, object] = {
        "id": "2", "uid": 1000, "user": "anna", "cls": "user", "type": "wayland",
        "state": "active", "active": True, "remote": False, "seat": "seat0", "vt": 2,
        "scope": "session-2.scope", **facts,
    }  # fmt: skip
    return Session(**given)  # type: ignore[arg-type]


TERMINAL = session(type="tty")
SSH = session(type="tty", seat="", vt=0, remote=True)


def server(comm: str, *argv: str, cgroup: str = MANAGER, uid: int = 1000, pid: int = 9) -> Process:
    return Process(pid, uid, comm, (comm, *argv), cgroup, None)


def holders(path: str, servers: list[Process], *sessions: Session) -> list[str]:
    found = unaccounted([path], servers, sessions)
    assert {one.code for one in found} <= {"unaccounted_display"}
    return [str(one) for one in found]


def test_the_paths_of_displays_are_distinguished_from_others() -> None:
    paths = [f"@{X0}", X0, W0, "/tmp/.X11-unix/X0_", "/run/user/1000/bus", f"{W0}.lock", "",
             "@/tmp/dbus-1", "/run/user/1000/pipewire-0", "/tmp/.X11-unix/X12"]  # fmt: skip
    assert displays_among(paths) == [W0, X0, "/tmp/.X11-unix/X12"]


def test_a_headless_compositor_under_a_user_manager_counts_while_it_listens() -> None:
    (holder,) = holders(W0, [server("sway")])
    assert holder == (
        f"sway (uid 1000, process 9) listens at {W0}, and no login session accounts for it; end it"
        " to lend this machine"
    )
    assert len(holders(W0, [server("sway")], TERMINAL, SSH)) == 1


@pytest.mark.parametrize(
    ("path", "servers", "sessions"),
    [
        # GNOME and KDE: the compositor runs under the user's manager, beside the session's scope.
        (W0, [server("gnome-shell")], [session()]),
        (X0, [server("Xwayland", ":0", "-rootless")], [session()]),
        (W0, [server("kwin_wayland"), server("kwin_wayland_wr")], [session()]),
        # gdm's X server chooses its display itself.
        (X0, [server("Xorg", "vt2", "-displayfd", "3", cgroup=SCOPE)], [session(type="x11")]),
        # A compositor, or startx, in a terminal session.
        (W0, [server("sway", cgroup=SCOPE)], [TERMINAL]),
        (W0, [], [TERMINAL]),
        (X0, [server("Xorg", ":0", "vt1", cgroup=SCOPE)], [TERMINAL]),
        # A greeter's; lightdm's and sddm's X servers are root's and their own.
        (X0, [server("Xorg", ":0", "-seat", "seat0", cgroup="/system.slice/lightdm.service",
                     uid=0)], []),
        ("/run/user/114/wayland-0", [server("gnome-shell", uid=114)],
         [session(uid=114, cls="greeter", scope="session-c1.scope")]),
        ("/run/user/114/wayland-0", [], [session(uid=114, cls="greeter", type="tty", vt=0)]),
        # Decided by their connections.
        ("/tmp/.X11-unix/X1", [server("Xtigervnc", ":1")], []),
        ("/tmp/.X11-unix/X10", [server("Xorg", ":10", "-config", "xrdp/xorg.conf")], []),
    ],
)  # fmt: skip
def test_a_display_is_accounted_for(
    path: str, servers: list[Process], sessions: list[Session]
) -> None:
    assert holders(path, servers, *sessions) == []


@pytest.mark.parametrize(
    ("path", "servers", "sessions"),
    [
        (X0, [], [session()]),  # somebody's in another namespace, maybe
        (X0, [server("Xvfb", ":7")], [session()]),
        ("/tmp/.X11-unix/X7", [server("Xvfb", ":7")], [session(uid=1001)]),
        ("/tmp/.X11-unix/X7", [server("Xvfb", ":7")], [TERMINAL, SSH]),
        ("/tmp/.X11-unix/X7", [server("Xvfb", ":7"), server("Xvnc", ":7")], []),
        (W0, [], [SSH, session(uid=1001)]),
        (W0, [server("sway"), server("sway", cgroup=SCOPE)], [TERMINAL]),
        # What a session left behind.
        (W0, [server("sway", cgroup=SCOPE)], [session(type="tty", state="closing")]),
        (W0, [server("gnome-shell")], [session(state="closing")]),
        # A scope of the same name is another's.
        (X0, [server("Xorg", ":0", cgroup="/user.slice/session-22.scope")], [TERMINAL]),
        (X0, [server("Xorg", ":0")], [session(type="tty", scope="")]),
    ],
)
def test_a_display_counts_without_a_session(
    path: str, servers: list[Process], sessions: list[Session]
) -> None:
    assert len(holders(path, servers, *sessions)) == 1


def test_a_session_that_xrdp_left_behind_does_not_account_for_a_headless_compositor() -> None:
    left = session(seat="", type="x11", service="xrdp-sesman", scope="session-7.scope")
    path = "/run/user/1000/wayland-1"
    assert holders(path, [server("sway")], left)
    assert not holders(path, [server("gnome-shell")], session(seat="", service="gdm-password"))


def test_a_display_of_our_own_work_does_not_count() -> None:
    path = "/tmp/.X11-unix/X7"
    assert unaccounted([path], [server("Xvfb", ":7")], [], ours={9}) == []
    both = [server("Xvfb", ":7"), server("Xvfb", ":7", pid=10)]
    assert len(unaccounted([path], both, [], ours={9})) == 1
