"""What chaos does to a mesh: kills, stops, full disks, stepped clocks, a cut append-only file,
and answers that are not control's.

A fault begins, lasts for a while and ends; `begin` answers False when it met nobody. Disks are
small tmpfs in a mount namespace of their own, so nothing stays mounted, however chaos ends.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from rae_protocol.errors import RaeError
from tools.devmesh import DevMesh, MeshError, Node, is_alive, is_stopped, wait_until
from tools.intermediary import Intermediary, at_random, pass_on

KINDS = ("kill", "stop", "disk", "clock", "aof", "intermediary", "copy")
# Shares of the rounds; kills are the likeliest thing in life, too.
WEIGHTS = {
    "kill": 50, "stop": 20, "disk": 15, "clock": 9, "aof": 6, "intermediary": 30, "copy": 20,
}  # fmt: skip
CLOCK_STEP_S = 600
MIB = 1024 * 1024
_INSIDE = "RAE_CHAOS_NAMESPACE"
# Folder below the mesh's, MiB. The ledger's is the folder itself, so it comes first.
_DISKS = {"ledger": ("", 96), "blobs": ("blobs", 48), "redis": ("redis", 24)}
_NODE_DISKS = {"spool": 8, "workdir": 16}
LOW_WATER = 8 * MIB


@dataclass(slots=True)
class Fault:
    """Something that is wrong for `lasts` seconds."""

    name: str
    lasts: float
    begin: Callable[[], bool]
    end: Callable[[], None] = field(default=lambda: None)
    deadly: bool = False


class Faults:
    """Draws faults for a mesh. `disks` and `clocks` come from `Disks` and `Clocks`; `between` is
    what agents and submitters reach control through."""

    def __init__(
        self, mesh: DevMesh, rng: random.Random, disks: Disks, clocks: Clocks,
        between: Intermediary, kinds: tuple[str, ...] = KINDS,
    ) -> None:  # fmt: skip
        self._mesh, self._rng, self._disks, self._clocks = mesh, rng, disks, clocks
        self._between = between
        self._kinds = kinds
        self._away: set[str] = set()

    def revive(self) -> None:
        """Start agents that ended by themselves, as systemd would (a full disk ends one)."""
        for node in self._mesh.nodes.values():
            if not node.running and node.name not in self._away:
                node.start()

    def draw(self) -> Fault:
        """The next one."""
        weights = [WEIGHTS[kind] for kind in self._kinds]
        kind = self._rng.choices(self._kinds, weights)[0]
        make: Callable[[], Fault] = getattr(self, f"_{kind}")
        return make()

    def _kill(self) -> Fault:
        victim = self._rng.choice(("gunicorn", "worker", "redis", "agent", "agent"))
        if victim != "agent":
            return Fault(f"{victim} killed", 0.0, lambda: self._mesh.kill(victim), deadly=True)
        node = self._rng.choice(list(self._mesh.nodes.values()))

        def begin() -> bool:
            if not node.running:
                return False
            self._away.add(node.name)
            node.kill()
            return True

        def end() -> None:
            node.start()
            self._away.discard(node.name)

        return Fault("agent killed", self._rng.uniform(0.0, 4.0), begin, end, deadly=True)

    def _stop(self) -> Fault:
        victim = self._rng.choice(("gunicorn", "worker", "redis", "agent", "supervisor"))
        held: list[int] = []

        def begin() -> bool:
            pid = self._pid_of(victim)
            if pid is None:
                return False
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGSTOP)
                held.append(pid)
            return bool(held)

        def end() -> None:
            # The number may be somebody else's by now only if ours has died and been waited for; a
            # SIGCONT to a process that is not stopped does nothing.
            with contextlib.suppress(ProcessLookupError):
                os.kill(held[0], signal.SIGCONT)

        return Fault(f"{victim} stopped", self._rng.uniform(0.2, 9.0), begin, end)

    def _pid_of(self, victim: str) -> int | None:
        if victim == "agent":
            node = self._rng.choice(list(self._mesh.nodes.values()))
            return node.pid if node.running else None
        if victim == "supervisor":
            found = self._mesh.supervisors()
            return self._rng.choice(found) if found else None
        with contextlib.suppress(MeshError):
            pid = self._mesh.pid(victim)
            return pid if pid in self._mesh.leftovers() else None
        return None

    def _disk(self) -> Fault:
        name = self._rng.choice(("ledger", "blobs", "redis", "spool", "workdir"))
        node = self._rng.choice(list(self._mesh.nodes))
        folder = self._disks.folder(name, node)
        ballast = folder / "ballast"

        def begin() -> bool:
            fill(ballast)
            return True

        def end() -> None:
            ballast.unlink(missing_ok=True)
            # What an operator does after having made room.
            with contextlib.suppress(RaeError):
                for view in self._mesh.admin.nodes():
                    if view.state == "cordoned":
                        self._mesh.admin.node_verb(view.node_id, "resume")

        return Fault(f"disk of {name} full", self._rng.uniform(0.3, 5.0), begin, end)

    def _clock(self) -> Fault:
        who = self._rng.choice(("control", *self._mesh.nodes))
        step = self._rng.choice((-CLOCK_STEP_S, CLOCK_STEP_S))

        def begin() -> bool:
            self._clocks.set(who, step)
            return True

        name = "clock of control stepped" if who == "control" else "clock of a node stepped"
        return Fault(name, self._rng.uniform(1.0, 8.0), begin, lambda: self._clocks.set(who, 0))

    def _aof(self) -> Fault:
        damaged = self._rng.random() < 0.5

        def begin() -> bool:
            # `serve` would start Redis again at once; nobody starts it on a half-cut file.
            if not self._mesh.kill("serve", signal.SIGSTOP):
                return False
            try:
                pid = self._mesh.pid("redis")
                self._mesh.kill("redis")
                wait_until(lambda: not is_alive(pid), 10, "Redis is dead")
                files = list(self._disks.folder("redis", "").rglob("*.aof"))
                for file in files:
                    size = file.stat().st_size
                    place = self._rng.randrange(size + 1)
                    if damaged:
                        with file.open("r+b") as handle:
                            handle.seek(place)
                            handle.write(b"\0garbage\r\n")
                    else:
                        os.truncate(file, place)
            finally:
                self._mesh.kill("serve", signal.SIGCONT)
            return True

        return Fault(f"Redis's file {'damaged' if damaged else 'cut'}", 0.0, begin)

    def _intermediary(self) -> Fault:
        share = self._rng.choice((0.1, 0.3, 0.6, 1.0))
        rule = at_random(random.Random(self._rng.randrange(2**32)), share)  # noqa: S311 - reproducible, not secret

        def begin() -> bool:
            self._between.rule = rule
            return True

        def end() -> None:
            self._between.rule = pass_on

        name = f"intermediary answers {share:.0%} of the calls"
        return Fault(name, self._rng.uniform(0.5, 9.0), begin, end)

    def _copy(self) -> Fault:
        node = self._rng.choice(list(self._mesh.nodes.values()))
        silent, farewell = self._rng.random() < 0.8, self._rng.random() < 0.5
        copies: list[Node] = []

        def begin() -> bool:
            if not node.running:
                return False
            # Its disk is copied while nothing changes on it. Mostly its agent then stays silent for
            # longer than a heartbeat may be missing, and what it started keeps running.
            node.signal(signal.SIGSTOP)
            wait_until(lambda: not node.running or is_stopped(node.pid), 10, "the agent stops")
            folder = Path(tempfile.mkdtemp(prefix="copy-", dir=self._mesh.data.parent))
            copies.append(self._mesh.copy_node(node.name, folder))
            copies[0].start()
            if not silent:
                node.signal(signal.SIGCONT)
            return True

        def end() -> None:
            if farewell:
                copies[0].stop()
            else:
                copies[0].kill()
            node.signal(signal.SIGCONT)

        name = "node copied to a second machine" + (", the first one silent" if silent else "")
        return Fault(name, self._rng.uniform(8.0, 16.0), begin, end)


def fill(ballast: Path) -> None:
    """Leave no byte on the file's disk."""
    handle = os.open(ballast, os.O_WRONLY | os.O_CREAT, 0o600)
    try:
        for piece in (MIB, 4096, 1):
            with contextlib.suppress(OSError):
                while True:
                    os.write(handle, b"\0" * piece)
    finally:
        os.close(handle)


class Disks:
    """A small disk for each thing that a mesh writes, below one folder."""

    def __init__(self, data: Path) -> None:
        self.data = data

    def folder(self, name: str, node: str) -> Path:
        """Where a disk is mounted."""
        if name in _DISKS:
            return self.data / _DISKS[name][0]
        return self.data / "nodes" / node / name

    def mount(self, nodes: list[str]) -> None:
        """Make them all. Raises MeshError."""
        for where, size in self._wanted(nodes):
            where.mkdir(mode=0o700, parents=True, exist_ok=True)
            _mount("-t", "tmpfs", "-o", f"size={size}m,mode=0700", "tmpfs", str(where))

    def unmount(self) -> None:
        """Let go of them, so that the folder can be removed."""
        subprocess.run(["umount", "--recursive", "--lazy", str(self.data)], check=False)

    def _wanted(self, nodes: list[str]) -> Iterator[tuple[Path, int]]:
        for name, (_, size) in _DISKS.items():
            yield self.folder(name, ""), size
        yield self.data / "log", 512  # what processes print; the audit reads it, so it stays free
        for node in nodes:
            for name, size in _NODE_DISKS.items():
                yield self.folder(name, node), size


class Clocks:
    """A wall clock of its own for control and for each node, through libfaketime."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        folder.mkdir(exist_ok=True)

    def env(self, who: str) -> Mapping[str, str]:
        """What a process needs in its environment. Raises MeshError."""
        spec = importlib.util.find_spec("libfaketime")
        places = (spec.submodule_search_locations or []) if spec else []
        library = next((p for place in places for p in Path(place).rglob("libfaketime.so.1")), None)
        if library is None:
            raise MeshError("libfaketime is not installed; `make venv` installs it")
        self.set(who, 0)
        return {
            "LD_PRELOAD": str(library), "FAKETIME_TIMESTAMP_FILE": str(self._folder / who),
            "FAKETIME_CACHE_DURATION": "1", "NO_FAKE_STAT": "1",
            # Intervals are true: only what people call the time jumps.
            "FAKETIME_DONT_FAKE_MONOTONIC": "1", "FAKETIME_DONT_RESET": "1",
        }  # fmt: skip

    def set(self, who: str, offset_s: int) -> None:
        """Step a clock; its processes see that within a second."""
        part = self._folder / f"{who}.part"
        part.write_text(f"{offset_s:+d}\n", encoding="ascii")
        part.replace(self._folder / who)


def enter_namespace() -> None:
    """Go on in a mount namespace of our own (as a stranger's root, where that is allowed).

    Raises MeshError where the machine allows neither.
    """
    if inside := os.environ.get(_INSIDE):
        if inside == "user":
            own_root()
        return
    command = ["unshare", "--mount", "--propagation", "private"]
    user = os.geteuid() != 0
    if user:
        command += ["--user", "--map-root-user"]
    if not shutil.which("unshare") or subprocess.run([*command, "true"], check=False).returncode:
        raise MeshError(
            "full disks need a mount namespace, and this machine allows none; run it as root, or "
            "leave them out with FAULTS=kill,stop,clock,aof,intermediary,copy"
        )
    os.environ[_INSIDE] = "user" if user else "root"
    os.execvp(command[0], [*command, sys.executable, "-m", "tools.chaos", *sys.argv[1:]])  # noqa: S606 - the same program


def own_root(holder: Path = Path("/mnt")) -> None:
    """Make a folder of our own the root, with all of the machine's in it. Raises MeshError.

    A user namespace that a user without rights makes knows that user alone: `/` and /tmp belong to
    an unknown one there, and agents rightly trust no task below such a folder.
    """
    here, hidden = Path.cwd(), os.open(holder, os.O_PATH)
    _mount("-t", "tmpfs", "-o", "mode=755", "tmpfs", str(holder))
    for entry in Path("/").iterdir():
        place = holder / entry.name
        if entry.is_symlink():
            place.symlink_to(entry.readlink())
        elif entry.is_dir():
            place.mkdir()
            source = f"/proc/{os.getpid()}/fd/{hidden}" if entry == holder else str(entry)
            _mount("--rbind", source, str(place))
    os.close(hidden)
    files = Path("/chaos")
    (holder / files.name).mkdir(mode=0o700)
    os.chroot(holder)
    os.chdir(here)
    os.environ["TMPDIR"] = str(files)


def _mount(*words: str) -> None:
    done = subprocess.run(["mount", *words], capture_output=True, text=True, check=False)
    if done.returncode:
        raise MeshError(f"mount {' '.join(words)}: {done.stderr.strip()}")
