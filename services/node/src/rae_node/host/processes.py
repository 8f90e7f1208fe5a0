"""Processes of this machine as the agent needs them: what they used, whose they are, their end."""

from __future__ import annotations

import contextlib
import os
import stat
import time
from collections.abc import Collection
from pathlib import Path

from rae_node.supervisor.cgroup import ROOT, own
from rae_node.supervisor.process_tree import (
    TICK,
    all_pids,
    children,
    descendants,
    is_alive,
    parent_of,
    read_proc,
    send_kill,
    stat_of,
)

ROOT_MARK = "RAE_NODE_ROOT"
SLICE = "rae.slice"


def english() -> dict[str, str]:
    """This environment, for a program whose output is read: its words are not translated."""
    return {**os.environ, "LC_ALL": "C.UTF-8", "LANGUAGE": "C.UTF-8"}


def own_slice(cgroup: str | None = None, root: str = ROOT) -> Path | None:
    """The cgroup of all that is RAE's: rae.slice, where the agent is a unit in it."""
    inside = (own() if cgroup is None else cgroup).startswith(f"/{SLICE}/")
    return Path(root, SLICE) if inside else None


def own_pids(rae: Path | None = None) -> frozenset[int]:
    """The agent, everything below it, and all in its slice: tasks' units, the model runner."""
    rae = own_slice() if rae is None else rae
    found = [os.getpid(), *descendants(os.getpid())]
    return frozenset([*found, *(() if rae is None else pids_below(rae))])


def pids_below(cgroup: Path) -> list[int]:
    """The processes of a cgroup and of those below it; none where there is no such cgroup."""
    found: list[int] = []
    # Not Path.rglob, which raises where a unit ends while we look.
    for folder, _, names in os.walk(cgroup):
        if "cgroup.procs" in names:
            with contextlib.suppress(OSError):
                text = Path(folder, "cgroup.procs").read_text(encoding="ascii")
                found += map(int, text.split())
    return found


def own_cpu_seconds(pids: Collection[int], rae: Path | None = None) -> float:
    """CPU time of ours, and of what was ours and has ended. Raises OSError, ValueError."""
    rae = own_slice() if rae is None else rae
    if rae is None:
        return cpu_seconds(pids)
    words = (rae / "cpu.stat").read_text(encoding="ascii").split()
    return int(words[words.index("usage_usec") + 1]) / 1e6


def only_on_terminal(pids: Collection[int], device: int) -> bool:
    """Whether a terminal is these processes' and of no others."""
    number = _tty_nr(device)
    if not any(stat_of(pid)[4:5] == [number] for pid in pids):
        return False  # the rule: the other look, at every process, costs more
    return all(pid in pids for pid in all_pids() if stat_of(pid)[4:5] == [number])


def controls_some(device: int) -> bool:
    """Whether a terminal is the controlling one of a process; yes where /proc hides processes."""
    number = _tty_nr(device)
    return not stat_of(1) or any(stat_of(pid)[4:5] == [number] for pid in all_pids())


def _tty_nr(device: int) -> bytes:
    """As in /proc/PID/stat: the minor number's upper bits stand above the major number."""
    major, minor = os.major(device), os.minor(device)
    return str((minor & 0xFF) | (major << 8) | ((minor & ~0xFF) << 12)).encode()


def cpu_seconds(pids: Collection[int]) -> float:
    """CPU time of processes with everything they ever started (and waited for)."""
    return sum(int(value) for pid in pids for value in stat_of(pid)[11:15]) / TICK


def machine_cpu_seconds() -> tuple[float, float]:
    """(busy, total) seconds of all cores since boot. Raises OSError, ValueError."""
    first = Path("/proc/stat").read_text(encoding="ascii").split("\n", 1)[0]
    values = [int(value) for value in first.split()[1:9]]
    idle = values[3] + values[4]
    return (sum(values) - idle) / TICK, sum(values) / TICK


def kill_below(pid: int, bound_s: float = 5.0) -> None:
    """Kill a supervisor that does not answer with everything below it.

    Descendants first, so that nothing is set free, at most so long.
    """
    limit = time.monotonic() + bound_s
    while time.monotonic() < limit and any(is_alive(one) for one in descendants(pid)):
        send_kill(descendants(pid))
        time.sleep(0.001)
    send_kill([pid])


def orphans(known: set[int]) -> list[int]:
    """What dead supervisors left to the agent (their subreaper): unknown children elsewhere.

    That is, in another session than the agent's own.
    """
    own = str(os.getsid(0)).encode()
    return [
        pid
        for pid in children(os.getpid())
        if pid not in known and stat_of(pid)[3:4] not in ([], [own])
    ]


def reap(pids: list[int]) -> None:
    """Kill children with everything below them, and collect those that are dead."""
    send_kill([below for pid in pids for below in (*descendants(pid), pid)])
    for pid in pids:
        try:
            os.waitpid(pid, os.WNOHANG)
        except ChildProcessError:
            continue


def predecessors(root: Path) -> list[int]:
    """Processes of an earlier agent with this root folder, and everything below them.

    Found by the mark in their environment (a supervisor always has it), or by working folder,
    program or open file inside the workspaces; any user can make these look so, and only the
    agent's and the tasks' processes count. Never the caller or its ancestors.
    """
    uid, gid = _users(root)
    workdir, mark = f"{root / 'workdir'}/", os.fsencode(f"{ROOT_MARK}={root}")
    spared, pid = set(), os.getpid()
    while pid > 0:
        spared.add(pid)
        pid = parent_of(pid)
    found: set[int] = set()
    for pid in all_pids():
        if pid in spared or pid in found or not _runs_as(pid, uid, gid):
            continue
        if _belongs(pid, mark, workdir):
            found.update((pid, *descendants(pid)))
    return sorted(pid for pid in found - spared if is_alive(pid))


def kill_predecessors(root: Path, bound_s: float) -> int:
    """Kill them until there are none; returns how many there were.

    Raises TimeoutError when some are still alive after the bound.
    """
    limit, seen = time.monotonic() + bound_s, set[int]()
    while found := predecessors(root):
        if time.monotonic() > limit:
            raise TimeoutError(f"processes {found} do not die")
        seen.update(found)
        send_kill(found)
        time.sleep(0.02)
    return len(seen)


def _users(root: Path) -> tuple[int, int | None]:
    """The agent's uid, and the tasks' gid where root made a user for them."""
    try:
        run, work = (root / "run").stat(), (root / "workdir").stat()
    except OSError:
        return os.getuid(), None
    return run.st_uid, work.st_gid if work.st_mode & stat.S_ISGID else None


def _runs_as(pid: int, uid: int, gid: int | None) -> bool:
    """Whether its real user or group is one of these."""
    found = {}
    for line in read_proc(f"{pid}/status").splitlines():
        name, *values = line.split()
        if name in {b"Uid:", b"Gid:"}:
            found[name] = int(values[0])
    return found.get(b"Uid:") == uid or (gid is not None and found.get(b"Gid:") == gid)


def _belongs(pid: int, mark: bytes, workdir: str) -> bool:
    if mark in read_proc(f"{pid}/environ").split(b"\0"):
        return True
    proc = Path("/proc") / str(pid)
    try:
        if any(f"{_target(proc / name)}/".startswith(workdir) for name in ("cwd", "exe")):
            return True
        return any(_target(link).startswith(workdir) for link in (proc / "fd").iterdir())
    except OSError:  # gone, or another user's: not ours
        return False


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""
