"""Processes of this machine as the agent needs them: what they used, whose they are, their end."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

from rae_node.proctree import children, descendants, send_kill

ROOT_MARK = "RAE_NODE_ROOT"
_TICK = os.sysconf("SC_CLK_TCK")


def start_time(pid: int) -> int | None:
    """Clock ticks since boot at which the process began: tells a pid from its reuse."""
    fields = _stat(pid)
    return None if fields is None else int(fields[19])


def is_alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    fields = _stat(pid)
    return fields is not None and fields[0] not in {b"Z", b"X"}


def cpu_seconds(pids: list[int]) -> float:
    """CPU time of processes and of the dead they waited for."""
    ticks = 0
    for pid in pids:
        fields = _stat(pid)
        if fields is not None:
            ticks += sum(int(value) for value in fields[11:15])
    return ticks / _TICK


def own_cpu_seconds() -> float:
    """CPU time of the agent with everything it ever started."""
    return cpu_seconds([os.getpid(), *descendants(os.getpid())])


def machine_cpu_seconds() -> tuple[float, float]:
    """(busy, total) seconds of all cores since boot. Raises OSError, ValueError."""
    first = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0]
    values = [int(value) for value in first.split()[1:9]]
    idle = values[3] + values[4]
    return (sum(values) - idle) / _TICK, sum(values) / _TICK


def orphans() -> list[int]:
    """Children of the agent in another session than its own: what a dead supervisor left."""
    own = os.getsid(0)
    found = []
    for pid in children(os.getpid()):
        try:
            if os.getsid(pid) != own:
                found.append(pid)
        except OSError:
            continue
    return found


def kill_below(pid: int, bound_s: float = 5.0) -> bool:
    """Kill a supervisor that does not answer with everything below it.

    Descendants first, so that nothing is set free; returns whether all are dead within the bound.
    """
    limit = time.monotonic() + bound_s
    while time.monotonic() < limit:
        below = descendants(pid)
        alive = [one for one in below if is_alive(one)]
        if not alive:
            send_kill([pid])
            return True
        send_kill(below)
        time.sleep(0.001)
    send_kill([pid])
    return False


def reap_orphans(known: set[int], bound_s: float = 5.0) -> bool:
    """Kill what dead supervisors left to the agent (their subreaper); True when none is left."""
    limit = time.monotonic() + bound_s
    while time.monotonic() < limit:
        strays = [pid for pid in orphans() if pid not in known]
        if not strays:
            return True
        send_kill([below for stray in strays for below in (*descendants(stray), stray)])
        for stray in strays:
            try:
                os.waitpid(stray, os.WNOHANG)
            except ChildProcessError:
                continue
        time.sleep(0.001)
    return False


def predecessors(root: Path, recorded: dict[int, int]) -> list[int]:
    """Processes of an earlier agent with this root folder.

    Found by the mark in their environment, by working folder, program or open file inside the
    workspaces, or as recorded supervisors (pid → start time) and their descendants. Never the
    caller or its ancestors.
    """
    workdir = f"{root / 'workdir'}/"
    mark = f"{ROOT_MARK}={root}".encode()
    spared = set(_ancestors())
    found: set[int] = set()
    for pid, began in recorded.items():
        if start_time(pid) == began:
            found.update((pid, *descendants(pid)))
    for pid in _all_pids():
        if pid not in spared and pid not in found and _belongs(pid, mark, workdir):
            found.update((pid, *descendants(pid)))
    return sorted(pid for pid in found - spared if is_alive(pid))


def kill_until_none(find: Callable[[], list[int]], bound_s: float) -> int:
    """Kill what `find` returns until it returns nothing. Returns how many there were.

    Raises TimeoutError when some are still alive after the bound.
    """
    limit, seen = time.monotonic() + bound_s, set[int]()
    while found := find():
        if time.monotonic() > limit:
            raise TimeoutError(f"processes {found} do not die")
        seen.update(found)
        send_kill(found)
        time.sleep(0.02)
    return len(seen)


def _belongs(pid: int, mark: bytes, workdir: str) -> bool:
    proc = Path("/proc") / str(pid)
    try:
        if mark in (proc / "environ").read_bytes().split(b"\0"):
            return True
        links: list[Path] = [proc / "cwd", proc / "exe"]
        for link in links:
            if f"{_target(link)}/".startswith(workdir):
                return True
        return any(_target(link).startswith(workdir) for link in (proc / "fd").iterdir())
    except OSError:  # gone, or another user's: not ours
        return False


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


def _all_pids() -> Iterator[int]:
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            yield int(entry.name)


def _ancestors() -> Iterator[int]:
    pid = os.getpid()
    while pid > 0:
        yield pid
        fields = _stat(pid)
        pid = int(fields[1]) if fields is not None else 0


def _stat(pid: int) -> list[bytes] | None:
    """Fields of /proc/PID/stat from the state on (field 3 of proc(5) is index 0)."""
    try:
        return Path(f"/proc/{pid}/stat").read_bytes().rpartition(b")")[2].split()
    except OSError:
        return None
