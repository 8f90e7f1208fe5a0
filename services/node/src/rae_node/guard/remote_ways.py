"""Remote-desktop servers, and whether somebody is connected to one. Pure: facts in, presences out.

sshd is not here: logind makes a session of each of its connections.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from enum import Enum

from rae_node.guard.policy import Holder

CODE = "remote_desktop"
_COMM_SIZE = 15  # the kernel cuts the names of processes
VNC_PORTS = range(5900, 5920)  # 5900 and the display's number; more belong to other programs
RDP_PORTS = range(3389, 3400)
# Where a VNC viewer waits for a server that calls it.
VIEWER_PORTS = range(5500, 5600)
# Whoever listens here serves a desktop, whatever its name.
KNOWN_PORTS = frozenset((*VNC_PORTS, *RDP_PORTS))


class Sign(Enum):
    """How a server shows that somebody is connected."""

    CONNECTION = 1  # to a port at which it listens; without one it cannot be decided
    CONNECTION_IF_ANY = 2  # the same, but it also runs where sharing is off, without a port
    PROCESS = 3  # the process itself: it exists only while somebody is connected
    STREAM = 4  # UDP ports that it opens for the time of a stream
    NONE = 5  # it always holds connections of its own, and no sign tells them apart


@dataclass(frozen=True, slots=True)
class Server:
    """A remote-desktop server: its processes' names, its usual ports, and its sign.

    `argument`: what must begin one of its arguments, so that a process counts.
    """

    name: str
    comms: tuple[str, ...]
    sign: Sign = Sign.CONNECTION
    ports: Collection[int] = ()
    argument: str = ""


_VNC_DISPLAYS = ("Xvnc", "Xtigervnc", "Xtightvnc", "Xvnc4", "Xkasmvnc")
SERVERS = (
    # xrdp forks one process of this name for each client; its sesman listens on loopback alone.
    Server("xrdp", ("xrdp",), ports=RDP_PORTS),
    Server("VNC server", _VNC_DISPLAYS, ports=VNC_PORTS),
    Server("x11vnc", ("x11vnc",), ports=VNC_PORTS),
    Server("x0vncserver", ("x0vncserver", "x0tigervncserver", "X0tigervnc"), ports=VNC_PORTS),
    Server("wayvnc", ("wayvnc",), ports=VNC_PORTS),
    Server("KRdp", ("krdpserver",), ports=RDP_PORTS),
    Server("FreeRDP shadow", ("freerdp-shadow-cli",), ports=RDP_PORTS),
    # These run in each session of their desktop. gnome-remote-desktop hands a connection over to a
    # second daemon, so that it is the port of another process.
    Server(
        "gnome-remote-desktop",
        ("gnome-remote-desktop-daemon",),
        Sign.CONNECTION_IF_ANY,
        (*RDP_PORTS, *VNC_PORTS),
    ),
    Server("Krfb", ("krfb",), Sign.CONNECTION_IF_ANY, VNC_PORTS),
    Server("Vino", ("vino-server",), Sign.CONNECTION_IF_ANY, VNC_PORTS),
    # nxserver and nxnode talk to each other on loopback all the time; clients come in by nxd.
    Server("NoMachine", ("nxd",), ports=(4000,)),
    # The connection manager, started for each login (rustdesk: start_ipc in server/connection.rs).
    Server("RustDesk", ("rustdesk",), Sign.PROCESS, argument="--cm"),
    # teamviewerd starts it for an incoming session (mcdope/pam_usb#202).
    Server("TeamViewer", ("TeamViewer_Desktop",), Sign.PROCESS),
    # Its control socket is bound in start_broadcast alone (sunshine: stream.cpp).
    Server("Sunshine", ("sunshine",), Sign.STREAM),
    # Clients of these may come in by a relay, to which a connection is open all the time.
    Server("RealVNC", ("vncserver-x11-core", "Xvnc-core"), Sign.NONE),
    Server("AnyDesk", ("anydesk",), Sign.NONE),
    Server("Chrome Remote Desktop", ("chrome-remote-desktop-host",), Sign.NONE),
)
BY_COMM: Mapping[str, Server] = {
    comm[:_COMM_SIZE]: server for server in SERVERS for comm in server.comms
}
VNC_DISPLAYS = frozenset(comm[:_COMM_SIZE] for comm in _VNC_DISPLAYS)
# Video, control and sound: so far above the first of Sunshine's TCP ports.
_STREAM_OFFSETS = (9, 10, 11)


@dataclass(frozen=True, slots=True)
class Inet:
    """A TCP or UDP socket. Addresses are texts; an IPv4 one that IPv6 carries is written as IPv4.

    `ipv6`: its family, which an accepted connection has from the socket that listened.
    `cgroup`: the id of its creator's cgroup, which is its folder's inode number in the v2 tree;
    None where the kernel does not say it. `uid`: who made the socket, or accepted the connection.
    """

    ipv6: bool
    address: str
    port: int
    peer: str
    peer_port: int
    uid: int
    inode: int
    cgroup: int | None

    def accepts(self, connection: Inet) -> bool:
        """Whether a connection came in by this listening socket, whose port it then has."""
        anywhere = self.address in {"0.0.0.0", "::"}  # noqa: S104 - compared, never bound
        same = (self.ipv6, self.port) == (connection.ipv6, connection.port)
        return same and (anywhere or self.address == connection.address)


@dataclass(frozen=True, slots=True)
class Process:
    """A process. `cgroup`: its path in the v2 tree; `cgroup_id`: None where it is not known."""

    pid: int
    uid: int
    comm: str
    argv: tuple[str, ...]
    cgroup: str
    cgroup_id: int | None

    def __str__(self) -> str:
        return f"uid {self.uid}, process {self.pid}"


@dataclass(frozen=True, slots=True)
class Watch:
    """What to ask of connections. `listeners`: who listens, for people, by socket.

    `callers`: VNC servers that may have called a viewer, by their cgroup.
    """

    listeners: Mapping[Inet, str]
    callers: Mapping[int | None, str]

    def local_ports(self, ipv6: bool) -> frozenset[int]:
        """Local ports of connections that count."""
        return frozenset(one.port for one in self.listeners if one.ipv6 is ipv6)

    @property
    def peer_ports(self) -> Collection[int]:
        """Ports of the other side whose connections may count."""
        return VIEWER_PORTS if self.callers else ()


def servers_among(processes: Iterable[Process]) -> list[tuple[Server, Process]]:
    """The processes that are remote-desktop servers, or a sign of one."""
    found = [(BY_COMM[one.comm], one) for one in processes if one.comm in BY_COMM]
    return [
        (server, one)
        for server, one in found
        if not server.argument or any(word.startswith(server.argument) for word in one.argv[1:])
    ]


def watch(
    servers: Sequence[tuple[Server, Process]],
    listening: Sequence[Inet],
    udp: Callable[[], Sequence[Inet]],
) -> tuple[Watch, list[Holder]]:
    """What to ask of connections, and what counts without: sessions, and what cannot be decided.

    `listening`: TCP sockets. `udp` is called only where a server needs it.
    """
    listeners: dict[Inet, str] = {}
    callers: dict[int | None, str] = {}
    found = []
    for server, process in servers:
        label = f"{server.name} ({process})"
        if server.sign is Sign.PROCESS:
            found.append(Holder(CODE, f"{label}: a client is connected"))
        elif server.sign is Sign.STREAM:
            found += _streams(label, process, listening, udp())
        elif server.sign is Sign.NONE:
            found.append(_undecided(label, "a client's connection looks like its own"))
        else:
            own = _own_sockets(server, process, listening)
            listeners = {**dict.fromkeys(own, label), **listeners}
            if not own and server.sign is Sign.CONNECTION:
                found.append(_undecided(label, "no listening port is known to be its own"))
            if server.ports is VNC_PORTS and process.cgroup_id is not None:
                callers[process.cgroup_id] = label
    known = {one: "an unknown server" for one in listening if one.port in KNOWN_PORTS}
    return Watch({**known, **listeners}, callers), found


def clients(watched: Watch, established: Sequence[Inet]) -> list[Holder]:
    """The connections that a client made to a server, or a server to its viewer."""
    found = []
    for one in established:
        labels = (label for socket, label in watched.listeners.items() if socket.accepts(one))
        if label := next(labels, ""):
            where = f"is connected to port {one.port}"
        elif one.peer_port in VIEWER_PORTS and (label := watched.callers.get(one.cgroup, "")):
            where = "is connected as its viewer"
        else:
            continue
        peer = f"[{one.peer}]" if ":" in one.peer else one.peer
        found.append(Holder(CODE, f"{label}: {peer}:{one.peer_port} {where}"))
    return found


def _own_sockets(server: Server, process: Process, listening: Sequence[Inet]) -> list[Inet]:
    """The listening sockets that are a server's: descriptors of others are not ours to read.

    Those of its cgroup with a usual port or one of its command line; else all of its cgroup, for a
    file may name the port. A desktop's own server may share its cgroup with all of the desktop, and
    listen nowhere: for that one it must be a unit.
    """
    words = (re.fullmatch(r"(?:.*[=:])?(\d+)", word) for word in process.argv[1:])
    numbers = {int(word[1]) for word in words if word}
    named = numbers | {VNC_PORTS.start + number for number in numbers}  # `:7` is port 5907
    inside = [one for one in listening if _may_own(process, one)]
    likely = [one for one in inside if one.port in server.ports or one.port in named]
    if likely or (
        server.sign is Sign.CONNECTION_IF_ANY and not process.cgroup.endswith(".service")
    ):
        return likely
    return [one for one in inside if None not in {process.cgroup_id, one.cgroup}]


def _may_own(process: Process, socket: Inet) -> bool:
    """By the cgroup: the user may be another's from before it gave up its rights."""
    known = {process.cgroup_id, socket.cgroup}
    return None in known or len(known) == 1


def _streams(
    label: str, process: Process, listening: Sequence[Inet], udp: Sequence[Inet]
) -> list[Holder]:
    bases = [one.port for one in listening if _may_own(process, one)]
    if not bases:
        return [_undecided(label, "no listening port is known to be its own")]
    ports = {base + offset for base in bases for offset in _STREAM_OFFSETS}
    streams = sorted({one.port for one in udp if one.port in ports and _may_own(process, one)})
    if not streams:
        return []
    return [Holder(CODE, f"{label}: it streams through {', '.join(map(str, streams))}")]


def _undecided(label: str, why: str) -> Holder:
    text = f"{label}: {why}, so it counts while it runs; stop it to lend this machine"
    return Holder(CODE, text)
