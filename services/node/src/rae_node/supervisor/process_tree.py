"""Processes and folders, with the standard library alone: shared by agent and supervisor."""

from __future__ import annotations

# Without pathlib, which would cost the supervisor a third of its start-up time:
# ruff: noqa: PTH101, PTH106, PTH108, PTH110, PTH123, PTH208
import contextlib
import errno
import itertools
import os
import signal
import time
from collections.abc import Callable, Iterator

TICK = os.sysconf("SC_CLK_TCK")
_FOLDER = os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC


def read_proc(path: str) -> bytes:
    """A file below /proc; empty when it is gone or not ours to read."""
    try:
        with open(f"/proc/{path}", "rb") as handle:
            return handle.read()
    except OSError:
        return b""


def all_pids() -> list[int]:
    """Every process of the machine."""
    return [int(name) for name in os.listdir("/proc") if name.isdigit()]


def stat_of(pid: int) -> list[bytes]:
    """Fields of /proc/PID/stat from the state on (field 3 of proc(5) is index 0); [] when gone."""
    return read_proc(f"{pid}/stat").rpartition(b")")[2].split()


def is_alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    return stat_of(pid)[:1] not in ([], [b"Z"], [b"X"])


def parent_of(pid: int) -> int:
    """The parent's pid; 0 when there is none."""
    fields = stat_of(pid)
    return int(fields[1]) if fields else 0


def children(pid: int) -> list[int]:
    """Direct children of a process, those of each of its threads; [] when it is gone."""
    if not os.path.exists(f"/proc/self/task/{os.getpid()}/children"):  # no CONFIG_PROC_CHILDREN
        return [one for one in all_pids() if parent_of(one) == pid]
    try:
        threads = os.listdir(f"/proc/{pid}/task")
    except OSError:
        return []
    lines = (read_proc(f"{pid}/task/{thread}/children") for thread in threads)
    return [int(child) for line in lines for child in line.split()]


def descendants(pid: int) -> list[int]:
    """Every process below `pid`, deepest last."""
    found: list[int] = []
    layer = children(pid)
    while layer:
        found += layer
        layer = [grandchild for child in layer for grandchild in children(child)]
    return found


def send_kill(pids: list[int]) -> None:
    """SIGKILL to each; who is gone already is fine."""
    for pid in pids:
        try:
            os.kill(pid, signal.SIGKILL)
        except OSError:
            continue


@contextlib.contextmanager
def stopped(pids: Callable[[], list[int]]) -> Iterator[None]:
    """None of them does anything meanwhile; any may wake another until all of them are stopped."""
    held = asked = set(pids())
    for _ in range(50):
        if not asked:
            break
        for pid in asked:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGSTOP)
        asked = {pid for pid in pids() if stat_of(pid)[:1] not in ([], [b"T"], [b"t"], [b"Z"])}
        held |= asked
    try:
        yield
    finally:
        for pid in held:
            with contextlib.suppress(OSError):
                os.kill(pid, signal.SIGCONT)


def oom_kills() -> int:
    """How often the kernel killed for memory since boot; 0 where it does not say."""
    words = read_proc("vmstat").split()
    return int(words[words.index(b"oom_kill") + 1]) if b"oom_kill" in words else 0


def memory_used_mb(pids: list[int], limit_mb: float) -> float:
    """Memory of processes together, in MiB.

    Resident pages, which count what is shared many times, are quick to add up; beyond the limit
    it is the proportional sizes that decide. Swapped ones and page tables count, too.
    """
    found = {where: facts for where, facts in map(memory_facts, pids) if facts}
    more = sum(_kb(facts, b"VmSwap") + _kb(facts, b"VmPTE") for facts in found.values())
    sizes = {where: _kb(facts, b"VmRSS") for where, facts in found.items()}
    if sum(sizes.values()) + more > limit_mb * 1024:
        for where in sizes:
            words = read_proc(f"{where}/smaps_rollup").split()
            if b"Pss:" in words:
                sizes[where] = int(words[words.index(b"Pss:") + 1])
    return (sum(sizes.values()) + more) / 1024


def memory_facts(pid: int) -> tuple[str, dict[bytes, bytes]]:
    """Where /proc tells of a process's memory, and what; ("", {}) when it has none any more.

    Its first thread may have ended before the others: that one then looks like a dead process.
    """
    for where in _places(pid):
        lines = read_proc(f"{where}/status").splitlines()
        facts = {key: value for key, _, value in (line.partition(b":") for line in lines)}
        if b"VmRSS" in facts:
            return where, facts
    return "", {}


def _places(pid: int) -> Iterator[str]:
    yield str(pid)
    with contextlib.suppress(OSError):
        yield from (f"{pid}/task/{thread}" for thread in os.listdir(f"/proc/{pid}/task"))


def _kb(facts: dict[bytes, bytes], name: bytes) -> int:
    return int(facts.get(name, b"0").split()[0])


def memory_left_mb() -> float:
    """What the machine has left, in MiB; without end where the kernel does not say."""
    words = read_proc("meminfo").split()
    name = b"MemAvailable:"
    return int(words[words.index(name) + 1]) / 1024 if name in words else float("inf")


def wipe(folder: str) -> None:
    """Delete a folder with everything in it, however deep and whatever its modes.

    Folders inside are first moved to the top, so depth costs neither stack nor descriptors, and no
    link is ever followed: one that stands where the folder should be goes, as a file does, and what
    it points to stays as it is. Raises OSError.
    """
    try:
        top = entered(folder)
    except FileNotFoundError:
        return
    except OSError as error:
        if error.errno not in {errno.ENOTDIR, errno.ELOOP}:
            raise
        os.unlink(folder)
        return
    numbers = itertools.count(time.time_ns())
    try:
        while names := os.listdir(top):
            for name in names:
                # A supervisor that took too long may still be at it, beside its agent.
                with contextlib.suppress(FileNotFoundError):
                    _remove(name, top, numbers)
    finally:
        os.close(top)
    with contextlib.suppress(FileNotFoundError):
        os.rmdir(folder)


def _remove(name: str, top: int, numbers: Iterator[int]) -> None:
    """Remove a file, or a folder whose own folders go to the top. Raises OSError."""
    if _unlinked(name, top):
        return
    inner = entered(name, top)
    try:
        for child in os.listdir(inner):
            if not _unlinked(child, inner):
                os.close(entered(child, inner))  # its own to move, too
                os.rename(child, f".wipe{next(numbers)}", src_dir_fd=inner, dst_dir_fd=top)
    finally:
        os.close(inner)
    os.rmdir(name, dir_fd=top)


def entered(name: str, above: int | None = None) -> int:
    """A descriptor of a folder that is its user's alone now, whatever its modes were before.

    Raises OSError, ENOTDIR for a link. A path alone opens a folder that may not be read.
    """
    found = os.open(name, _FOLDER | os.O_PATH, dir_fd=above)
    try:
        with contextlib.suppress(PermissionError):  # the agent's, who lets the tasks' group in
            os.chmod(f"/proc/self/fd/{found}", 0o700)
        return os.open(".", _FOLDER, dir_fd=found)
    finally:
        os.close(found)


def _unlinked(name: str, folder: int) -> bool:
    """Whether the name is gone now; a folder stays."""
    try:
        os.unlink(name, dir_fd=folder)
    except IsADirectoryError:
        return False
    except FileNotFoundError:
        pass
    return True
