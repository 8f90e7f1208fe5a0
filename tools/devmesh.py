"""A mesh of real processes on this machine: control with its Redis, and agents.

For the demo, the integration tests and chaos. Everything lives in one folder and dies with this
process, however that ends: children are tied to it (PR_SET_PDEATHSIG), and `close` looks for
whatever still mentions the folder.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from rae_node.isolation.base import PROGRAM
from rae_protocol.client import RaeClient
from rae_protocol.errors import RaeError
from tools.processes import MeshError, Process, processes_of

# One twentieth of the contract's periods. The ack and the margin are longer than that, because a
# busy machine takes its time; the cooldown is shorter, because nobody sits at these nodes.
SCALE = 20
FAST_CONTROL: Mapping[str, object] = {
    "heartbeat_interval_s": 30 / SCALE,
    "heartbeat_timeout_s": 120 / SCALE,
    "ack_timeout_s": 3,
    "default_lease_ttl_s": 120 / SCALE,
    "lease_margin_s": 1,
    "reconcile_interval_s": 10 / SCALE,
    "reaper_interval_s": 0.1,
    "retry_backoff_s": 5 / SCALE,
    "interruption_pause_s": 10 / SCALE,
    "rate_limit_per_s": 1000,
    "rate_limit_burst": 1000,
    "register_limit_per_s": 10,
    "skew_ahead_s": 1,
}
FAST_NODE: Mapping[str, object] = {
    "heartbeat_interval_sec": 30 / SCALE,
    "poll_interval_sec": 1,
    "cooldown_minutes": 1 / 60,
    "max_concurrent_cpu": 2,
    "isolation": "process",  # the same for root and others, with bubblewrap or without
}

# What the command line of each part of control has in it.
_PROGRAMS = {
    "serve": "rae_control.cli.rae_control",
    "gunicorn": "rae_control.server.gunicorn_app",
    "worker": "rae_control.server.gunicorn_app",
    "redis": "unixsocket",
}


def wait_until(
    condition: Callable[[], Any], timeout_s: float, what: str, *, every_s: float = 0.02
) -> Any:
    """Look until the condition holds and return its value. Raises MeshError."""
    end = time.monotonic() + timeout_s
    while True:
        value = condition()
        if value:
            return value
        if time.monotonic() >= end:
            raise MeshError(f"after {timeout_s:g} s still not: {what}")
        time.sleep(every_s)


@dataclass(slots=True)
class Node(Process):
    """An agent, and its owner's verbs."""

    data: Path = field(default_factory=Path)

    @property
    def root(self) -> Path:
        """The node's folder."""
        return self.data / "nodes" / self.name

    def owner(self, *verb: str, timeout_s: float = 30.0) -> str:
        """`rae-node VERB …` as the owner types it; returns what it prints. Raises MeshError."""
        command = [sys.executable, "-m", "rae_node", *verb]
        command += ["--data", str(self.data), "--node-id", self.name]
        done = subprocess.run(
            command, capture_output=True, text=True, timeout=timeout_s, check=False
        )
        if done.returncode != 0:
            raise MeshError(
                f"rae-node {' '.join(verb)} on {self.name}: {done.stderr or done.stdout}"
            )
        return done.stdout.strip()


class DevMesh:
    """Control and agents in one folder; use it as a context manager.

    `control` and `node` are settings on top of the fast ones; `data` keeps the folder; `env` gives
    what `control` or a node, by its name, has in its environment besides ours; `run_as` is what
    their command lines begin with.
    """

    def __init__(
        self,
        nodes: Sequence[str] = ("n1", "n2"),
        *,
        control: Mapping[str, object] | None = None,
        node: Mapping[str, object] | None = None,
        data: Path | None = None,
        env: Callable[[str], Mapping[str, str]] = lambda _who: {},
        run_as: Sequence[str] = (),
    ) -> None:
        self._run_as = list(run_as)
        self._temporary = data is None
        self._env = env
        self.data = (data or Path(tempfile.mkdtemp(prefix="rae-mesh-"))).absolute()
        self._control_settings = {**FAST_CONTROL, **(control or {})}
        self._node_settings = {**FAST_NODE, **(node or {})}
        self._spawner = ThreadPoolExecutor(1, "spawner")
        self._logs = self.data / "log"
        self.control = self._process(0)
        self.nodes: dict[str, Node] = {}
        self._first = list(nodes)
        self.url = ""

    def __enter__(self) -> DevMesh:
        try:
            self._logs.mkdir(parents=True, exist_ok=True)
            self.start_control()
            for name in self._first:
                self.add_node(name)
            for name in self._first:
                self.wait_node(name, "online")
        except BaseException:
            self._say_logs()
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        if kind is not None and not issubclass(kind, KeyboardInterrupt | SystemExit):
            self._say_logs()
        self.close()

    # Control

    def _process(self, port: int) -> Process:
        command = [
            *self._run_as,
            sys.executable,
            "-m",
            "rae_control.cli.rae_control",
            "serve",
            "--dev",
        ]
        command += ["--data", str(self.data), "--port", str(port), *_sets(self._control_settings)]
        log = self._logs / "control.out"
        return Process("control", command, log, self._spawner, env=self._env("control"))

    def start_control(
        self, timeout_s: float = 30.0, *, settings: Mapping[str, object] | None = None
    ) -> None:
        """Start control (again: on the same port, with these settings changed) and wait until it
        listens."""
        self._control_settings |= settings or {}
        if self.url:
            self.control = self._process(int(self.url.rpartition(":")[2]))
        self.control.start()
        self.wait_ready(timeout_s)

    def wait_ready(self, timeout_s: float = 30.0) -> None:
        """Wait until control answers. Raises MeshError."""

        def ready() -> bool:
            if not self.control.running:
                raise MeshError(f"control ended\n{self.control.tail()}")
            with contextlib.suppress(RaeError, OSError, ValueError, KeyError):
                self.url = str(self.credentials()["url"])
                return bool(self.admin.health())
            return False

        wait_until(ready, timeout_s, "control listens", every_s=0.05)

    def credentials(self) -> dict[str, Any]:
        """What `credentials.json` says now."""
        value: dict[str, Any] = json.loads((self.data / "credentials.json").read_text())
        return value

    @property
    def admin(self) -> RaeClient:
        """A fresh client that may everything."""
        return RaeClient(self.url, self.credentials()["admin_token"])

    @property
    def rae(self) -> RaeClient:
        """A fresh client that submits."""
        return RaeClient(self.url, self.credentials()["submit_token"])

    @property
    def redis_url(self) -> str:
        """Where `rq info -u` finds the queue."""
        return (self.data / "run" / "redis.url").read_text().strip()

    def pid(self, part: str) -> int:
        """The process id of `serve`, `gunicorn`, `worker` or `redis`. Raises MeshError."""
        try:
            return int((self.data / "run" / f"{part}.pid").read_text())
        except (OSError, ValueError) as error:
            raise MeshError(f"{part} has no pid file") from error

    def kill(self, part: str, number: int = signal.SIGKILL) -> bool:
        """Send a signal to a part of control; False when it was not there to get it."""
        try:
            pid = self.pid(part)
            # A pid file may be older than its process's death, and the number somebody else's now,
            # even one of our agents'.
            if _PROGRAMS[part] not in self.leftovers().get(pid, ""):
                return False
            os.kill(pid, number)
        except (MeshError, ProcessLookupError):
            return False
        return True

    # Nodes

    def add_node(
        self,
        name: str,
        settings: Mapping[str, object] | None = None,
        python: str = sys.executable,
    ) -> Node:
        """Start an agent; `wait_node` waits for it."""
        command = [*self._run_as, python, "-m", "rae_node", "run", "--dev"]
        command += ["--data", str(self.data)]
        command += ["--node-id", name, *_sets({**self._node_settings, **(settings or {})})]
        log = self._logs / f"node-{name}.out"
        self.nodes[name] = Node(
            name, command, log, self._spawner, env=self._env(name), data=self.data
        )
        self.nodes[name].start()
        return self.nodes[name]

    def copy_node(self, name: str, folder: Path) -> Node:
        """The disk of a node in another machine: the same secret and spool; not started yet.

        A second agent of one node and control is refused on one machine, so the copy knows control
        under another name of this host.
        """
        original = self.nodes[name]
        for part in ("agent", "spool"):
            shutil.copytree(original.root / part, folder / "nodes" / name / part)
        here, there = "//127.0.0.1:", "//localhost:"
        credentials = self.credentials() | {"url": self.url.replace(here, there)}
        (folder / "credentials.json").write_text(json.dumps(credentials))
        command = [
            str(folder) if word == str(self.data) else word.replace(here, there)
            for word in original.command
        ]
        command += _sets({"slow_retry_sec": 0.5})
        log = self._logs / f"copy-of-{name}.out"
        return Node(name, command, log, self._spawner, env=original.env, data=folder)

    def wait_node(self, name: str, state: str, timeout_s: float = 30.0) -> None:
        """Wait until control sees the node in a state. Raises MeshError."""
        admin = self.admin

        def there() -> bool:
            if state == "online" and not self.nodes[name].running:
                raise MeshError(f"the agent {name} ended\n{self.nodes[name].tail()}")
            with contextlib.suppress(RaeError):
                return admin.node(name).state == state
            return False

        wait_until(there, timeout_s, f"node {name} is {state}", every_s=0.05)

    # The end

    def leftovers(self) -> dict[int, str]:
        """Processes of this mesh that still live."""
        return processes_of(self.data)

    def supervisors(self) -> list[int]:
        """The processes that supervise tasks now, where these are no units."""
        return sorted(pid for pid, line in self.leftovers().items() if str(PROGRAM) in line)

    def close(self) -> None:
        """Stop everything, agents first, and remove the folder."""
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(Process.stop, self.nodes.values()))
        self.control.stop()
        self._spawner.shutdown()
        if self._temporary:
            # Only here: in a folder that somebody named, somebody's shell may be at home.
            for pid in self.leftovers():
                with contextlib.suppress(ProcessLookupError):
                    os.kill(pid, signal.SIGKILL)
            shutil.rmtree(self.data, ignore_errors=True)

    def tails(self) -> str:
        """The ends of all logs."""
        parts = [self.control, *self.nodes.values()]
        extra = [
            Process(path.name, (), path, self._spawner)
            for path in (self._logs / "gunicorn.out", self._logs / "redis.log")
            if path.exists()
        ]
        return "\n".join(part.tail() for part in [*parts, *extra])

    def _say_logs(self) -> None:
        with contextlib.suppress(OSError):  # who read them has gone; the folder goes, too
            print(self.tails(), file=sys.stderr, flush=True)


def _sets(settings: Mapping[str, object]) -> Iterator[str]:
    for name, value in settings.items():
        yield from ("--set", f"{name}={json.dumps(value) if not isinstance(value, str) else value}")


def install_stamp(folder: Path) -> Path:
    """Put the task `stamp` where nodes trust it; returns the folder for `task_paths`."""
    tasks = folder / "tasks"
    tasks.mkdir(mode=0o755)
    shutil.copyfile(Path(__file__).with_name("stamp.py"), tasks / "stamp.py")
    # Whatever the umask: a file that a group may write is not trusted.
    tasks.chmod(0o755)
    (tasks / "stamp.py").chmod(0o644)
    return tasks
