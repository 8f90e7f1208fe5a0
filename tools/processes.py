"""Programs of a mesh on this machine: started, tied to their starter, found, and ended."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType

import psutil

# exec keeps the signal's setting, so any program can be tied without its help. SIGKILL, because
# each part of the mesh is made to take along what it started.
_TIE = """
import ctypes, os, signal, sys
ctypes.CDLL(None).prctl(1, int(sys.argv[1]))
if os.getppid() != int(sys.argv[2]):
    sys.exit(1)
os.execvp(sys.argv[3], sys.argv[3:])
"""


class MeshError(Exception):
    """A part of the mesh did not do what it should; the text ends with its log."""


def processes_of(folder: Path) -> dict[int, str]:
    """Live processes that have the folder in their arguments, environment or working directory."""
    found: dict[int, str] = {}
    for process in psutil.process_iter():
        # A process may end, or belong to somebody else, while we look.
        with contextlib.suppress(psutil.Error, OSError):
            words, needle = process.cmdline(), str(folder)
            inside = process.cwd().startswith(needle) or needle in " ".join(words)
            if process.pid != os.getpid() and (
                inside or any(needle in value for value in process.environ().values())
            ):
                found[process.pid] = " ".join(words)
    return found


def is_alive(pid: int) -> bool:
    """Whether the process runs (a zombie does not)."""
    return _state_of(pid) not in {"", psutil.STATUS_ZOMBIE, psutil.STATUS_DEAD}


def is_stopped(pid: int) -> bool:
    """Whether a signal has stopped the process."""
    return _state_of(pid) == psutil.STATUS_STOPPED


def _state_of(pid: int) -> str:
    """As psutil names it; empty when there is no such process."""
    with contextlib.suppress(psutil.NoSuchProcess):
        return psutil.Process(pid).status()
    return ""


@dataclass(slots=True)
class Process:
    """One program of the mesh that can be started, killed and started again."""

    name: str
    command: Sequence[str]
    log: Path
    spawner: ThreadPoolExecutor
    popen: subprocess.Popen[bytes] | None = None
    env: Mapping[str, str] = field(default_factory=dict)

    @property
    def pid(self) -> int:
        """The process id. Raises MeshError when it was never started."""
        if self.popen is None:
            raise MeshError(f"{self.name} was not started")
        return self.popen.pid

    @property
    def running(self) -> bool:
        """Whether it runs."""
        return self.popen is not None and self.popen.poll() is None

    def start(self) -> None:
        """Start it, tied to this process."""
        # The tie is to the *thread* that starts a child, so one thread, which stays, starts all.
        self.popen = self.spawner.submit(self._spawn).result()

    def _spawn(self) -> subprocess.Popen[bytes]:
        tie = [sys.executable, "-c", _TIE, str(int(signal.SIGKILL)), str(os.getpid())]
        with self.log.open("ab") as log:
            return subprocess.Popen(
                [*tie, *self.command], stdin=subprocess.DEVNULL, stdout=log,
                stderr=subprocess.STDOUT, start_new_session=True, env={**os.environ, **self.env},
            )  # fmt: skip

    def signal(self, number: int) -> None:
        """Send a signal; nothing happens to a process that has ended."""
        if self.running and self.popen is not None:
            self.popen.send_signal(number)

    def kill(self) -> None:
        """SIGKILL, and wait until it is gone."""
        if self.popen is not None:
            self.popen.kill()
            self.popen.wait(10)

    def stop(self, grace_s: float = 10.0) -> None:
        """SIGTERM, and SIGKILL to what does not listen."""
        if self.popen is None:
            return
        self.signal(signal.SIGTERM)
        self.signal(signal.SIGCONT)  # a stopped process hears the other one only then
        try:
            self.popen.wait(grace_s)
        except subprocess.TimeoutExpired:
            self.kill()

    def tail(self, lines: int = 30) -> str:
        """The end of its log."""
        try:
            text = self.log.read_text(encoding="utf-8", errors="replace")
        except OSError as error:
            return f"--- {self.name}: no log ({error.strerror})"
        return f"--- {self.name}\n" + "\n".join(text.splitlines()[-lines:])


def exit_on_signals() -> None:
    """Let SIGTERM and SIGHUP end the program the way Ctrl-C does, so that `with` blocks close.

    None of them raises where a block begins or ends: its lock would stay taken, and the end of the
    program, which closes connections, would wait for it.
    """
    late = signal.SIGINT

    def end(number: int, frame: FrameType | None) -> None:
        nonlocal late
        late = late if number == signal.SIGALRM else signal.Signals(number)
        if frame is not None and frame.f_code.co_name in {"__enter__", "__exit__"}:
            signal.setitimer(signal.ITIMER_REAL, 0.01)
        elif late == signal.SIGINT:
            raise KeyboardInterrupt
        else:
            raise SystemExit(128 + late)

    for number in (signal.SIGTERM, signal.SIGHUP, signal.SIGALRM):
        signal.signal(number, end)
    if signal.getsignal(signal.SIGINT) is signal.default_int_handler:  # else it is ignored
        signal.signal(signal.SIGINT, end)
