"""A virtual machine that is lent: its agent works for a control on this machine."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from rae_node.config.files import dev_config, dev_runtime
from tests.lab import vm_states
from tests.lab.cache import Say
from tests.lab.lab import CHECKOUT
from tests.lab.node_files import AGENT
from tests.lab.vm import Vm
from tests.lab.vm_image import RELEASE
from tests.until import until
from tools.devmesh import DevMesh

INSIDE, TASKS = Path(__file__).with_name("inside"), Path(__file__).with_name("tasks")
HARM = CHECKOUT / "tests" / "escape" / "tasks" / "harm.py"
TASKS_THERE = "/opt/rae-tests/tasks"
PYTHON = f"{RELEASE}/bin/python"
SLICE = "/sys/fs/cgroup/rae.slice"
# A tenth of the contract's periods: a machine under emulation needs more than a twentieth.
SCALE = 10
LEASE_S = 120 / SCALE
CONTROL: Mapping[str, object] = {
    "heartbeat_interval_s": 30 / SCALE, "heartbeat_timeout_s": 120 / SCALE,
    "default_lease_ttl_s": LEASE_S, "ack_timeout_s": 10, "lease_margin_s": 1,
}  # fmt: skip
SLEEP: Mapping[str, object] = {
    "kind": "cli", "params": {"command": "sleep", "args": ["3600"]},
}  # fmt: skip
# Under emulation a look takes longer, above all while something starts; and control comes late.
SETTINGS: Mapping[str, object] = {"source_timeout_sec": 8, "retry_cap_sec": 1}
NODE, PORT, ROOT_KEY = "vm", 8080, "5a" * 32
KEYS, ANYTHING = "1", "1,2,3"  # types of evdev's events

_DROP_IN = f"""[Service]
ExecStart=
ExecStart=/usr/bin/python3 {AGENT}/auto_runner.py {{words}}
"""
_DETECTOR = f"""[Service]
ExecStart=
ExecStart={PYTHON} -I -m rae_node.input /run/rae-input/input.sock {{words}}
"""


@dataclass(frozen=True, slots=True)
class Task:
    """A task that runs in the guest; `unit` is its systemd unit, `pids` are in its box."""

    task_id: str
    unit: str
    pids: tuple[int, ...]


@dataclass(frozen=True, slots=True)
class Guest:
    """The machine, and the control that its agent is registered at."""

    vm: Vm
    mesh: DevMesh

    def agent(self, *verb: str) -> str:
        """`rae-node VERB …` as its owner types it; what it prints. Raises LabError."""
        command = [PYTHON, "-m", "rae_node", *verb, "--root", "/opt/rae-node"]
        return self.vm.run(command).stdout

    def events(self, name: str) -> list[dict[str, Any]]:
        """The attributes of the agent's log lines of one event, oldest first."""
        lines = self.vm.unit_log("rae-node").splitlines()
        found = [json.loads(line) for line in lines if line.startswith("{")]
        return [line["attrs"] for line in found if line["event"] == name]

    def boxes(self) -> dict[str, list[int]]:
        """The processes in the box of each task that runs now, by its unit."""
        look = f"grep -H . {SLICE}/rae-task*/task/cgroup.procs"
        found: dict[str, list[int]] = {}
        for line in self.vm.run(["sh", "-c", look], check=False).stdout.splitlines():
            path, _, pid = line.rpartition(":")
            found.setdefault(path.split("/")[-3], []).append(int(pid))
        return found

    def body(self, **task: Any) -> dict[str, Any]:
        """A task for this node alone."""
        return {"requirements": {"nodes": [NODE]}, **(task or SLEEP)}

    def read(self, path: str) -> str:
        """A file of the guest's. Raises LabError."""
        return self.vm.run(["cat", path]).stdout


@dataclass(frozen=True, slots=True)
class Lent:
    """How a machine is lent: `config` goes over config.yaml, `safety` over that section of
    runtime.yaml, `settings` are the agent's (`--set`), `detector` are rae-input's values; `units`
    are started, the agent last.
    """

    state: vm_states.Name
    config: Mapping[str, object] = field(default_factory=dict)
    safety: Mapping[str, object] = field(default_factory=dict)
    settings: Mapping[str, object] = field(default_factory=dict)
    units: tuple[str, ...] = ("rae-node",)
    detector: Mapping[str, object] = field(default_factory=dict)

    def files(self) -> dict[str, str]:
        """What is written in the guest, but for the secret."""
        beat = {"heartbeat_interval_sec": CONTROL["heartbeat_interval_s"]}
        config = {
            **dev_config(NODE, f"http://127.0.0.1:{PORT}"), **beat, "min_isolation": "unit",
            "enrolment_file": "credential:enrolment.json", "task_paths": [TASKS_THERE],
            **self.config,
        }  # fmt: skip
        runtime = dev_runtime()
        runtime["execution"].update(beat)
        runtime["safety"].update({"max_cpu_percent": 100, "cooldown_minutes": 0.01, **self.safety})
        settings = {**SETTINGS, **self.settings}
        words = " ".join(f"--set {name}={value}" for name, value in settings.items())
        tasks = {f"{TASKS_THERE}/{file.name}": file.read_text(encoding="utf-8")
                 for file in (*sorted(TASKS.glob("*.py")), HARM)}  # fmt: skip
        return tasks | {
            f"{AGENT}/config.yaml": yaml.safe_dump(config),
            f"{AGENT}/runtime.yaml": yaml.safe_dump(runtime),
            f"{AGENT}/enabled": "",
            "/run/systemd/system/rae-node.service.d/lab.conf": _DROP_IN.format(words=words),
            "/run/systemd/system/rae-input.service.d/lab.conf": _DETECTOR.format(
                words=" ".join(f"{name}={value}" for name, value in self.detector.items())
            ),
        }

    def snapshot(self, say: Say) -> Path:
        """A machine in this state whose agent runs, and calls a control that is not there yet."""
        files = self.files()

        def prepare(vm: Vm) -> None:
            vm_states.begin(vm, self.state)
            for path, content in files.items():
                vm.put(path, content)
            vm.put("/etc/rae-node/enrolment.json", _enrolment(), 0o400)
            vm.run(["systemctl", "daemon-reload"])
            vm.run(["systemctl", "start", *self.units], timeout_s=180)

        state = repr((vm_states.STATES[self.state], self.units, sorted(files.items())))
        return vm_states.prepared(self.state, vm_states.installed(say), [state], say, prepare)


def make_mesh() -> DevMesh:
    """A control that machines of a snapshot are enrolled at; each of them needs one of its own."""
    mesh = DevMesh((), control=CONTROL)
    (mesh.data / "root.key").write_text(ROOT_KEY, encoding="ascii")
    return mesh


def _enrolment() -> str:
    # Secrets are derived from the root key, so those of a control that comes later are the same.
    with make_mesh() as mesh:
        enrolled = mesh.admin.enrol(NODE)
    return json.dumps({
        "enrolment_secret": enrolled.enrolment_secret, "kind": "hmac",
        "control_public_keys": enrolled.control_public_keys,
    })  # fmt: skip


def connect(vm: Vm, mesh: DevMesh) -> Guest:
    """Enrol a machine at its control, and wait until it is online. Raises MeshError."""
    mesh.admin.enrol(NODE)
    vm.forward(PORT, int(mesh.url.rpartition(":")[2]))
    until(lambda: mesh.admin.node(NODE).state == "online", "the machine is online", 60)
    return Guest(vm, mesh)


def running_task(guest: Guest, **task: Any) -> Task:
    """Submit a task, `sleep` by default, and wait until its program runs."""
    before = set(guest.boxes())
    task_id = guest.mesh.rae.submit([guest.body(**task)])[0].task_id

    def running() -> Task | None:
        if guest.mesh.admin.task(task_id).state != "running":
            return None
        for unit, pids in guest.boxes().items():
            # bubblewrap's two, and the program.
            if unit not in before and len(pids) > 2:
                return Task(task_id, unit, tuple(pids))
        return None

    found: Task = until(running, f"task {task_id} runs in the guest", 120, every_s=0.1)
    return found


def stopped_after_ms(
    guest: Guest, task: Task, touch: Callable[[], object], types: str = ANYTHING
) -> float:
    """Milliseconds from the kernel's first input event of these types until the task is gone.

    `touch` makes that event. Both ends are the guest's CLOCK_MONOTONIC. Then the task is cancelled:
    it would be the first to run again.
    """
    with inside(guest.vm, "watch.py", types, *map(str, task.pids)) as watch:
        assert watch.line() == "ready"
        touch()
        seen = json.loads(watch.line())
    guest.mesh.rae.cancel(task.task_id)
    took: float = (seen["gone"] - seen["event"]) * 1000
    return took


class Inside:
    """A program of tests/vm/inside that runs in the guest; lines go in and come out."""

    def __init__(self, popen: subprocess.Popen[str]) -> None:
        self._popen = popen

    def line(self) -> str:
        """The next line that it prints. Fails with what it said when it ends first."""
        assert self._popen.stdout is not None and self._popen.stderr is not None
        line = self._popen.stdout.readline()
        assert line, f"it ended: {self._popen.stderr.read()}"
        return line.strip()

    def rest(self) -> list[str]:
        """Close its input, and wait for its end; the lines that are not read yet."""
        assert self._popen.stdin is not None and self._popen.stdout is not None
        self._popen.stdin.close()
        return [line.strip() for line in self._popen.stdout]

    def say(self, line: str) -> None:
        """A line into its standard input."""
        assert self._popen.stdin is not None
        self._popen.stdin.write(f"{line}\n")
        self._popen.stdin.flush()


@contextmanager
def inside(vm: Vm, script: str, *argv: str) -> Iterator[Inside]:
    """Run a script of tests/vm/inside in the guest, with its system's Python."""
    source = (INSIDE / script).read_text(encoding="utf-8")
    command = vm.command(["python3", "-c", source, *argv])
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as popen:
        try:
            yield Inside(popen)
        finally:
            assert popen.stdin is not None
            popen.stdin.close()
            popen.terminate()


MakeGuest = Callable[..., Guest]
