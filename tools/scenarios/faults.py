"""What happens to a mesh: kills, stops, full disks, stepped clocks, a cut append-only file, answers
that are not control's, nodes on two machines, owners who come back.

A fault is a context manager that gives its name and for how many seconds it lasts, and raises
Missed when it met nothing.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import random
import signal
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path

from rae_protocol.errors import RaeError
from tools.devmesh import DevMesh, wait_until
from tools.processes import MeshError, is_alive, is_stopped
from tools.scenarios.disks import Disks, fill
from tools.scenarios.intermediary import Intermediary, at_random, pass_on

CLOCK_STEP_S = 600
Named = tuple[str, float]
Fault = Callable[[], AbstractContextManager[Named]]


class Missed(Exception):
    """Nothing was there for the fault to meet."""


def draw(faults: Mapping[str, Fault], weights: Mapping[str, int], rng: random.Random) -> str:
    """The kind of the next one."""
    return rng.choices(list(faults), [weights[kind] for kind in faults])[0]


@contextmanager
def kill(
    mesh: DevMesh, rng: random.Random, nodes: Sequence[str], parts: Sequence[str], away: set[str]
) -> Iterator[Named]:
    """SIGKILL to a part of control, or to an agent, which is in `away` until it starts again."""
    victim = rng.choice((*parts, "agent", "agent"))
    if victim != "agent":
        if not mesh.kill(victim):
            raise Missed
        yield f"{victim} killed", 0.0
        return
    node = mesh.nodes[rng.choice(nodes)]
    if not node.running:
        raise Missed
    away.add(node.name)
    node.kill()
    yield "agent killed", rng.uniform(0.0, 4.0)
    node.start()
    away.discard(node.name)


@contextmanager
def restart(mesh: DevMesh, rng: random.Random, nodes: Sequence[str]) -> Iterator[Named]:
    """An agent that ends well, and starts again."""
    node = mesh.nodes[rng.choice(nodes)]
    node.stop()
    yield "agent stopped", 0.0
    node.start()


@contextmanager
def owner(mesh: DevMesh, rng: random.Random) -> Iterator[Named]:
    """An owner who comes back for a moment."""
    mesh.nodes[rng.choice(list(mesh.nodes))].owner("pause", "5s")
    yield "yields to owners", 0.0


@contextmanager
def stop(mesh: DevMesh, rng: random.Random) -> Iterator[Named]:
    """SIGSTOP, for longer than leases and heartbeats last here."""
    victim = rng.choice(("gunicorn", "worker", "redis", "agent", "supervisor"))
    pid = _pid_of(victim, mesh, rng)
    if pid is None or not _sent(pid, signal.SIGSTOP):
        raise Missed
    yield f"{victim} stopped", rng.uniform(0.2, 9.0)
    # The number may be somebody else's by now only if ours has died and been waited for; a SIGCONT
    # to a process that is not stopped does nothing.
    _sent(pid, signal.SIGCONT)


def _sent(pid: int, number: int) -> bool:
    try:
        os.kill(pid, number)
    except ProcessLookupError:
        return False
    return True


def _pid_of(victim: str, mesh: DevMesh, rng: random.Random) -> int | None:
    if victim == "agent":
        node = rng.choice(list(mesh.nodes.values()))
        return node.pid if node.running else None
    if victim == "supervisor":
        found = mesh.supervisors()
        return rng.choice(found) if found else None
    with contextlib.suppress(MeshError):
        pid = mesh.pid(victim)
        return pid if pid in mesh.leftovers() else None
    return None


@contextmanager
def disk(mesh: DevMesh, rng: random.Random, disks: Disks) -> Iterator[Named]:
    """A disk is filled to the last byte."""
    name = rng.choice(("ledger", "blobs", "redis", "spool", "workdir"))
    ballast = disks.folder(name, rng.choice(list(mesh.nodes))) / "ballast"
    fill(ballast)
    yield f"disk of {name} full", rng.uniform(0.3, 5.0)
    ballast.unlink(missing_ok=True)
    # What an operator does after having made room.
    with contextlib.suppress(RaeError):
        for view in mesh.admin.nodes():
            if view.state == "cordoned":
                mesh.admin.node_verb(view.node_id, "resume")


@contextmanager
def clock(mesh: DevMesh, rng: random.Random, clocks: Clocks) -> Iterator[Named]:
    """A wall clock is set forward or back, and after some seconds back again."""
    who = rng.choice(("control", *mesh.nodes))
    clocks.set(who, rng.choice((-CLOCK_STEP_S, CLOCK_STEP_S)))
    name = "control" if who == "control" else "a node"
    yield f"clock of {name} stepped", rng.uniform(1.0, 8.0)
    clocks.set(who, 0)


@contextmanager
def aof(mesh: DevMesh, rng: random.Random, folder: Path) -> Iterator[Named]:
    """Redis dies, and its append-only file is cut at a random place, or overwritten there."""
    damaged = rng.random() < 0.5
    # `serve` would start Redis again at once; it stays stopped while its file is half cut.
    if not mesh.kill("serve", signal.SIGSTOP):
        raise Missed
    try:
        pid = mesh.pid("redis")
        mesh.kill("redis")
        wait_until(lambda: not is_alive(pid), 10, "Redis is dead")
        for file in folder.rglob("*.aof"):
            place = rng.randrange(file.stat().st_size + 1)
            if damaged:
                with file.open("r+b") as handle:
                    handle.seek(place)
                    handle.write(b"\0garbage\r\n")
            else:
                os.truncate(file, place)
    finally:
        mesh.kill("serve", signal.SIGCONT)
    yield f"Redis's file {'damaged' if damaged else 'cut'}", 0.0


@contextmanager
def intermediary(rng: random.Random, between: Intermediary) -> Iterator[Named]:
    """A share of the calls of agents and submitters is answered in control's place."""
    share = rng.choice((0.1, 0.3, 0.6, 1.0))
    between.rule = at_random(random.Random(rng.randrange(2**32)), share)  # noqa: S311 - reproducible, not secret
    yield f"intermediary answers {share:.0%} of the calls", rng.uniform(0.5, 9.0)
    between.rule = pass_on


@contextmanager
def copy(mesh: DevMesh, rng: random.Random) -> Iterator[Named]:
    """A node's folder is copied to a second machine, and an agent started there."""
    node = rng.choice(list(mesh.nodes.values()))
    silent, farewell = rng.random() < 0.8, rng.random() < 0.5
    if not node.running:
        raise Missed
    # Its disk is copied while nothing changes on it. Mostly its agent then stays silent for longer
    # than a heartbeat may be missing, and what it started keeps running.
    node.signal(signal.SIGSTOP)
    wait_until(lambda: not node.running or is_stopped(node.pid), 10, "the agent stops")
    second = mesh.copy_node(node.name, Path(tempfile.mkdtemp(prefix="copy-", dir=mesh.data.parent)))
    second.start()
    if not silent:
        node.signal(signal.SIGCONT)
    name = "node copied to a second machine" + (", the first one silent" if silent else "")
    yield name, rng.uniform(8.0, 16.0)
    if farewell:
        second.stop()
    else:
        second.kill()
    node.signal(signal.SIGCONT)


class Clocks:
    """A wall clock of its own for control and for each node, through libfaketime."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

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
