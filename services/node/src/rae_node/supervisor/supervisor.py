"""Runs one task, and ends it: at its deadline, on request, or when the agent is gone.

The program behind supervisor.py: standard library only, because it must start in milliseconds and
go on while the agent is stopped or dead. One JSON object a line.

In:  the spec (first line), then {"deadline": s} {"kill": reason} {"wipe": true}
     {"open": number, "folder": …, "name": …}
Out: {"unit": cgroup} {"started": pid} {"progress": {…}} {"exit": …, "signal": …, "cause": …}
     {"gone": true, "ms": …} {"opened": number, "found": …} {"wiped": true}
Times are seconds on CLOCK_BOOTTIME. Causes: exit timeout deadline killed output memory
replaced failed short.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import json
import os
import resource
import select
import signal
import time
from typing import Any

from rae_node.supervisor.cgroup import Cgroup, own
from rae_node.supervisor.channel import AgentLine
from rae_node.supervisor.deadline import DeadlineTimer
from rae_node.supervisor.limits import MEMORY_ROUND_S, SHORT, Watch, boot
from rae_node.supervisor.output import Outputs, last_note
from rae_node.supervisor.process_tree import children, descendants, oom_kills, send_kill, wipe
from rae_node.supervisor.safe_open import Refused, open_inside
from rae_node.supervisor.sandbox import Box, bound_processes, restrict

PR_SET_PDEATHSIG, PR_SET_CHILD_SUBREAPER, PR_SET_NO_NEW_PRIVS = 1, 36, 38
BOX_S = 10.0
ROUND_S = 1.0  # whatever the poll missed is looked at again within this
MAX_LINE = 16 * 1024 * 1024
_libc = ctypes.CDLL(None, use_errno=True)


class Supervisor:
    """One task from its start to the last trace of it."""

    def __init__(self, spec: dict[str, Any]) -> None:
        self.spec = spec
        self.deadline = float(spec["deadline"])
        self.limits: dict[str, Any] = spec["limits"]
        self.main: int | None = None
        self.status: int | None = None
        self.cause: str | None = None
        self.line = AgentLine()
        self.say = self.line.say
        self.received = bytearray()
        self.agent_there = True
        self.wipe_wanted = False
        self.note: int | None = None
        self.notes = bytearray()
        self.cgroup: Cgroup | None = None
        if spec.get("delegated"):
            self.say({"unit": own()})
            self.cgroup = Cgroup(self.limits["memory_mb"], int(self.limits["max_processes"]))
        self.box: Box | None = Box(spec["box"]) if spec.get("box") else None
        counted = self.cgroup is not None and self.cgroup.counts_memory
        self.watch = Watch(spec, counted=counted)
        self.outputs = Outputs(spec["log_dir"], int(self.limits["max_output_bytes"]))
        self.timer = DeadlineTimer()
        self.wake, self._wake_end = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)

    def run(self) -> None:
        """Start, watch, end, report, wipe."""
        signal.set_wakeup_fd(self._wake_end, warn_on_full_buffer=False)
        signal.signal(signal.SIGCHLD, lambda *_: None)
        # The agent's word or its end stops a task; a signal could as well be the task's own.
        for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGTERM):
            signal.signal(ignored, signal.SIG_IGN)
        os.set_blocking(0, False)
        os.set_blocking(1, False)
        self.started = boot()
        self.ooms = self.oom_kills()
        self.obey()
        if self.started >= self.deadline:
            self.end("deadline")
        elif self.cause is None:
            self.start()
        while self.cause is None:
            try:
                self.round()
            except OSError as error:  # a full disk, most likely
                self.say({"problem": str(error)})
                self.end(SHORT if error.errno == errno.ENOSPC else "failed")
        decided = boot()
        self.kill_all()
        self.report(decided)
        if self.cause == "deadline":  # the lease is over, and the agent may be stopped for hours
            with contextlib.suppress(OSError):  # reported at the second try, below
                wipe(self.spec["workspace"])
        while self.agent_there and not self.wipe_wanted:
            self.wait(ROUND_S)
        try:
            wipe(self.spec["workspace"])
            self.say({"wiped": True})
        except OSError as error:
            self.say({"wiped": False, "error": str(error)})
        limit = boot() + ROUND_S
        while self.line.pending and self.agent_there and boot() < limit:
            self.wait(0.05)

    def end(self, cause: str) -> None:
        """The first cause counts."""
        self.cause = self.cause or cause

    def round(self) -> None:
        """The clock first: whatever happened in a suspend, the deadline decides."""
        now = boot()
        due = self.started + float(self.limits["timeout_s"])
        if now >= self.deadline:
            return self.end("deadline")
        if now >= due:
            return self.end("timeout")
        found = self.watch.look(now, self.makers())
        if found is not None:
            cause, problem = found
            if problem is not None:
                self.say({"problem": problem})
            return self.end(cause)
        self.reap()
        if self.status is not None:
            return self.end("deadline" if boot() >= self.deadline else "exit")
        rest = min(ROUND_S, self.deadline - now, due - now)
        watched = self.limits["memory_mb"] is not None
        self.wait(max(0.0, min(rest, MEMORY_ROUND_S) if watched else rest))
        if self.outputs.total > self.outputs.limit:
            return self.end("output")
        if not self.agent_there:
            return self.end("killed")
        return None

    def makers(self) -> list[int | None]:
        """bubblewrap's processes, as long as only it is in them: a task can write to the second."""
        first = None if self.box is None else self.box.first
        return [] if first is None else [self.main, *([] if children(first) else [first])]

    def replaced(self) -> bool:
        """Whether the program is another one than the agent has checked."""
        known = self.spec.get("identity")
        if known is None:
            return False
        try:
            info = os.stat(self.spec["argv"][0])  # noqa: PTH116 - pathlib is slow to import
        except OSError:
            return True
        now = [info.st_dev, info.st_ino, info.st_size, info.st_mtime_ns, info.st_ctime_ns]
        return now != list(known)

    def start(self) -> None:
        """Fork, restrict, exec. A task that cannot start ends with cause `failed`."""
        if self.replaced():
            return self.end("replaced")
        self.timer.set(self.deadline)
        note_read, note_write = os.pipe2(os.O_CLOEXEC)
        error_read, error_write = os.pipe2(os.O_CLOEXEC)
        go_read, go_write = os.pipe2(os.O_CLOEXEC)
        pid = os.fork()
        if pid == 0:
            os.close(go_write)
            self.become_task(note_write, error_write, go_read)
        if self.box is None:
            self.say({"started": pid})  # reported first: the program could end us at once
        os.write(go_write, b"1")
        for end in (note_write, error_write, go_read, go_write, *self.outputs.ends.values()):
            os.close(end)
        problem = os.read(error_read, 4096)
        os.close(error_read)
        self.main = pid
        if problem:
            self.say({"problem": problem.decode(errors="replace")})
            return self.end("failed")
        if self.box is not None:
            said = self.box.wait(BOX_S)
            if said:
                self.say({"problem": f"bubblewrap made no box: {said}{self.outputs.peek()}"})
                return self.end("failed")
            self.say({"started": pid})
            self.box.release(int(self.limits["max_processes"]))
        os.set_blocking(note_read, False)
        self.note = note_read
        return None

    def become_task(self, note_write: int, error_write: int, go_read: int) -> None:
        """The child's side; never returns."""
        try:
            parent = os.getppid()
            _libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
            _libc.prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0)
            if os.getppid() != parent:  # it died before the line above took hold
                os._exit(1)
            if not os.read(go_read, 1):
                os._exit(1)
            os.setsid()
            if self.cgroup is not None:
                self.cgroup.enter()
            restrict(self.limits)
            if self.box is None:
                bound_processes(int(self.limits["max_processes"]))
            signal.set_wakeup_fd(-1)
            for restored in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE, signal.SIGTERM):
                signal.signal(restored, signal.SIG_DFL)
            env: dict[str, str] = dict(self.spec["env"])
            if self.spec.get("progress"):
                os.set_inheritable(note_write, True)
                env["RAE_PROGRESS_FD"] = str(note_write)
            null = os.open("/dev/null", os.O_RDONLY)
            os.dup2(null, 0)
            os.dup2(self.outputs.ends["stdout"], 1)
            os.dup2(self.outputs.ends["stderr"], 2)
            os.umask(0o077)
            os.chdir(self.spec["cwd"])
            argv = self.spec["argv"]
            if self.box is not None:
                argv = self.box.command(argv)
            os.execve(argv[0], argv, env)  # noqa: S606 - never a shell
        except BaseException as error:  # the only way to tell the parent
            os.write(error_write, f"{type(error).__name__}: {error}".encode()[:4000])
        os._exit(127)

    def reap(self) -> bool:
        """Collect the dead; False when no child is left at all."""
        while True:
            try:
                pid, status, usage = os.wait4(-1, os.WNOHANG)
            except ChildProcessError:
                return False
            if pid == 0:
                return True
            self.watch.peak_mb = max(self.watch.peak_mb, usage.ru_maxrss / 1024)
            if pid == self.main:
                self.status = status

    def kill_all(self) -> None:
        """Until no child is left: orphans come to us, so no child means no descendant."""
        pause = 0.0005
        quick = self.cgroup is not None and self.cgroup.kill()
        quick = (self.box is not None and self.box.kill()) or quick
        if not quick:
            send_kill(descendants(os.getpid()))
        self.timer.spare()
        while self.reap():
            time.sleep(pause)
            pause = min(pause * 2, 0.02)
            if not quick or pause == 0.02:  # the kernel is quicker than a look at them all
                send_kill(descendants(os.getpid()))
        self.outputs.drain()
        self.read_notes()

    def oom_kills(self) -> int:
        """The kernel's count of kills for memory: of this task where it is known, else of all."""
        if self.cgroup is not None and self.cgroup.counts_memory:
            return self.cgroup.oom_kills()
        return oom_kills()

    def report(self, decided: float) -> None:
        """How it ended, and that nothing lives any more."""
        ended = None if self.status is None else os.waitstatus_to_exitcode(self.status)
        if self.box is not None and ended is not None and 128 < ended <= 128 + signal.NSIG:
            ended = 128 - ended  # bubblewrap tells of a signal as shells do
        exited = self.cause == "exit" and ended is not None and ended > 0
        if exited and self.box is not None and not self.box.ran():
            # Not the task's failure: bubblewrap could not start its program.
            self.cause = "failed"
            self.say({"problem": f"the program did not start in its box: {self.outputs.said()}"})
        code = ended if ended is not None and ended >= 0 else None
        number = -ended if ended is not None and ended < 0 else None
        if self.cause == "exit" and number == signal.SIGKILL and self.oom_kills() > self.ooms:
            self.cause = "memory"
        if self.outputs.total > self.outputs.limit and self.cause == "exit":
            self.cause = "output"
        now = boot()
        usage = {
            "duration_s": round(now - self.started, 6),
            "max_rss_mb": round(self.watch.peak_mb, 1),
        }
        self.say({"exit": code, "signal": number, "cause": self.cause, **usage})
        self.say({"gone": True, "ms": round((now - decided) * 1000, 3)})

    def open(self, number: int, folder: str, name: str) -> None:
        """Open a file of the task for the agent, who may not be able to."""
        try:
            file = open_inside(self.spec["workspace"], folder, name)
        except Refused as error:
            return self.say({"opened": number, "error": str(error)})
        except OSError as error:
            return self.say({"opened": number, "error": error.strerror, "errno": error.errno})
        return self.say({"opened": number, "found": file is not None}, file)

    def wait(self, seconds: float) -> None:
        """At most so long, for a word from the agent, output, progress, or a death."""
        poller = select.poll()
        notes = [] if self.note is None else [self.note]
        for source in (0, self.wake, self.timer.file, *notes, *self.outputs.files):
            poller.register(source, select.POLLIN)
        if self.line.pending:
            poller.register(1, select.POLLOUT)
        for source, _ in poller.poll(seconds * 1000):
            if source == 0:
                self.listen()
            elif source == 1:
                self.line.flush()
            elif source == self.wake:
                os.read(self.wake, 4096)
            elif source == self.timer.file:
                self.timer.seen()
            elif source == self.note:
                self.read_notes()
            elif not self.outputs.pump(source):
                os.close(self.outputs.files.pop(source))
                os.close(source)

    def listen(self) -> None:
        """Orders of the agent; an end of file means that it is dead."""
        try:
            data = os.read(0, 1 << 16)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        self.agent_there = bool(data)
        self.received += data
        self.obey()

    def obey(self) -> None:
        """Every whole line that came."""
        while b"\n" in self.received:
            line, _, rest = bytes(self.received).partition(b"\n")
            self.received = bytearray(rest)
            order = json.loads(line)
            if "deadline" in order and float(order["deadline"]) > self.deadline:
                self.deadline = float(order["deadline"])
                if self.main is not None and self.cause is None:
                    self.timer.set(self.deadline)
            if "kill" in order:
                self.end("killed")
            if "open" in order:
                self.open(int(order["open"]), str(order["folder"]), str(order["name"]))
            self.wipe_wanted = self.wipe_wanted or bool(order.get("wipe"))

    def read_notes(self) -> None:
        """Progress lines of the task; only the last is passed on, and none to a deaf agent."""
        if self.note is None:
            return
        try:
            data = os.read(self.note, 1 << 16)
        except BlockingIOError:
            return
        if not data:
            os.close(self.note)
            self.note = None
        self.notes += data
        lines = bytes(self.notes).split(b"\n")
        self.notes = bytearray(lines[-1][:4096])
        note = last_note(lines[:-1])
        if note is not None and not self.line.pending:
            self.say({"progress": note})


def main() -> int:
    """Read the spec and see it through."""
    line = bytearray()
    while b"\n" not in line:
        piece = os.read(0, 1 << 16)
        if not piece or len(line) > MAX_LINE:
            return errno.EPIPE
        line += piece
    first, _, rest = bytes(line).partition(b"\n")
    _libc.prctl(PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)
    # The kernel passes no file on while this user has more than that on the way, see unix(7): those
    # of the tasks, who have a smaller limit, must not stop what we pass to the agent.
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    spec = json.loads(first)
    if "sweep" in spec:  # of a task that ended without its supervisor; its files are this user's
        with contextlib.suppress(OSError):  # what is the agent's, that wipes itself
            wipe(spec["sweep"])
        return 0
    supervisor = Supervisor(spec)
    supervisor.received += rest
    try:
        supervisor.run()
    finally:
        supervisor.kill_all()
    return 0
