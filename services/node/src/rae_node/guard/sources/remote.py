"""Remote desktops and displays without a seat: what /proc and the kernel's sockets show of them."""

from __future__ import annotations

import os
from collections.abc import Callable, Collection, Sequence
from pathlib import Path

from rae_node.errors import NodeError
from rae_node.guard import sockets
from rae_node.guard.displays import COMPOSITORS, X_SERVERS, displays_among, unaccounted
from rae_node.guard.policy import Reading
from rae_node.guard.remote_ways import BY_COMM, Process, clients, servers_among, watch
from rae_node.guard.sessions import Session
from rae_node.host.processes import SLICE
from rae_node.supervisor.cgroup import ROOT

_NAMES = frozenset(BY_COMM) | X_SERVERS | COMPOSITORS
_FACTS = ("State", "Uid")
_TURNS = ("05", "16", "27", "38", "49")  # last digits of the pids whose names are read anew


class Names:
    """The names of all processes, read anew where they may have changed.

    A process takes a new name with a new program: soon after its start, as a rule, so a name is
    read in the first two looks at it. From then on each look reads a fifth, and all when asked to.
    """

    def __init__(self, proc: Path) -> None:
        self._proc = str(proc)
        self._names: dict[str, str] = {}
        self._young: set[str] = set()
        self._turn = 0

    def look(self, anew: bool) -> dict[str, str]:
        """Names by pid. Raises NodeError where /proc hides processes, OSError."""
        pids = {name for name in os.listdir(self._proc) if name.isdigit()}  # noqa: PTH208 - quick
        known = self._names
        self._turn = (self._turn + 1) % len(_TURNS)
        turn = _TURNS[self._turn]
        young = pids.difference(known)
        due = {pid for pid in pids if pid[-1] in turn or pid == "1"}
        stale = pids if anew else due | young | self._young
        names = {pid: known[pid] for pid in pids - stale}
        for pid in stale & pids:
            if name := _read(f"{self._proc}/{pid}/comm"):
                names[pid] = name.strip()
        if "1" not in names:
            raise NodeError(
                "blind",
                f"{self._proc} hides the processes of other users; mount it with hidepid=0, or "
                "with gid= of a group that rae-node is in, and without ProtectProc= in the unit",
            )
        self._names, self._young = names, young
        return names


class RemoteSource:
    """Somebody at a remote desktop, or a display that no session accounts for.

    `sessions`: the login sessions that other sources decide; `ours`: pids of our own work.
    """

    name = "remote"

    def __init__(
        self,
        sessions: Callable[[], Sequence[Session]],
        *,
        ours: Callable[[], Collection[int]],
        proc: Path = Path("/proc"),
    ) -> None:
        self._sessions, self._ours, self._proc = sessions, ours, proc
        self._names = Names(proc)
        self._listened: tuple[object, ...] = ()

    def read(self) -> Reading:
        """Look. Raises NodeError where the kernel or /proc tells nothing, OSError, ValueError."""
        listening = sockets.tcp_listening()
        displays = displays_among(sockets.unix_listening())
        listened = (*sorted(one.inode for one in listening), *displays)
        names = self._names.look(anew=listened != self._listened)
        self._listened = listened
        processes = [
            one
            for pid, name in names.items()
            if name in _NAMES and (one := _process(f"{self._proc}/{pid}", name)) is not None
        ]
        ours = {*self._ours()} if processes else set()
        ours |= {one.pid for one in processes if one.cgroup.startswith(f"/{SLICE}/")}
        servers = servers_among(one for one in processes if one.pid not in ours)
        watched, found = watch(servers, listening, sockets.udp_bound)
        for ipv6 in (False, True):
            ports, peers = watched.local_ports(ipv6), watched.peer_ports
            if ports or peers:
                found += clients(watched, sockets.tcp_established(ipv6, ports, peers))
        if displays:
            found += unaccounted(displays, processes, self._sessions(), ours)
        code, holders = found[0].code if found else "", tuple(dict.fromkeys(found))
        return Reading(self.name, bool(found), code, holders=holders)


def _process(folder: str, name: str) -> Process | None:
    """What /proc tells of a process; None when it has ended. Raises OSError, ValueError."""
    status, argv, groups = (_read(f"{folder}/{file}") for file in ("status", "cmdline", "cgroup"))
    if not status or not groups:
        return None
    state, uid = (status.partition(f"\n{key}:")[2].split(maxsplit=1)[0] for key in _FACTS)
    if state in {"Z", "X"}:
        return None
    lines = (line for line in groups.splitlines() if line.startswith("0::"))
    cgroup = next(lines, "")[3:]
    pid = int(folder.rpartition("/")[2])
    return Process(pid, int(uid), name, tuple(argv.split("\0")), cgroup, _id_of(cgroup))


def _id_of(cgroup: str) -> int | None:
    """The id of a cgroup in the v2 tree, which is its folder's inode; None where there is none."""
    for root in (ROOT, f"{ROOT}/unified"):
        if Path(root, "cgroup.procs").exists():
            try:
                return Path(f"{root}{cgroup}").stat().st_ino
            except OSError:  # its last process has just ended
                return None
    return None


def _read(path: str) -> str:
    """A file below /proc; empty when its process has ended, or is hidden: PID 1 tells which."""
    try:
        file = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except (FileNotFoundError, PermissionError):
        return ""
    try:
        return os.read(file, 1 << 16).decode(errors="replace")
    except ProcessLookupError:
        return ""
    finally:
        os.close(file)
