"""A fake control, and an agent that works for it in the test's own process."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from rae_node.agent.agent import Agent
from rae_node.config import files
from rae_node.config.layout import Layout
from rae_node.config.tuning import Settings
from rae_node.guard.policy import Holder, Reading
from rae_node.owner.why import obstacles
from rae_protocol import models
from rae_protocol.errors import TABLE, RaeError, RemoteError
from rae_protocol.node_client import Polled
from tests.until import until
from tools.fake_logind import FakeLogind


class FakeControl:
    """NodeClient's interface over a list of tasks. `fail[verb]` is raised instead of answering."""

    def __init__(self) -> None:
        self.changed = threading.Condition()
        self.tasks: list[models.LeasedTask] = []
        self.fail: dict[str, RaeError] = {}
        self.calls: list[tuple[str, Any]] = []
        self.commands: list[models.Command] = []
        self.incarnation = "inc-1"
        self.blobs: dict[str, bytes] = {}
        self.clock_offset_s = 0.0
        self.margin_s = 0.5
        self.wanted: models.Wanted | None = None
        self._polls = 0

    def _call(self, verb: str, detail: Any = None) -> None:
        with self.changed:
            self.calls.append((verb, detail))
            error = self.fail.get(verb) or self.fail.get("*")
        if error is not None:
            raise error

    def of(self, verb: str) -> list[Any]:
        """Details of the calls of a kind."""
        with self.changed:
            return [detail for name, detail in self.calls if name == verb]

    def give(self, kind: str = "cli", **more: Any) -> models.LeasedTask:
        """Queue a task."""
        number = len(self.tasks) + len(self.of("ack")) + len(self.calls)
        fields = {
            "task_id": f"task-{number}",
            "attempt": 1,
            "lease_id": f"lease-{number:08}",
            "slot": "cpu0",
            "params": {"command": "true"},
            "timeout_s": 60.0,
            "lease_ttl_s": 60.0,
            "node_id": "n1",
            "incarnation": self.incarnation,
            "issued_at": time.time(),
            "expires_at": time.time() + 60,
            **more,
        }
        task = models.LeasedTask.model_validate({"kind": kind, **fields})
        with self.changed:
            self.tasks.append(task)
            self.changed.notify_all()
        return task

    def order(self, **fields: Any) -> None:
        """Send a command with the next poll."""
        with self.changed:
            self.commands.append(models.Command(**fields))
            self.changed.notify_all()

    def register(self, request: models.RegisterRequest) -> models.Registered:
        with self.changed:  # control ends the polls of an earlier session
            self._polls += 1
            self.changed.notify_all()
        self._call("register", request)
        return models.Registered(
            node_token="t", expires_in_s=1e4, heartbeat_interval_sec=30.0,
            heartbeat_timeout_sec=120.0, lease_margin_s=self.margin_s, ack_timeout_s=10.0,
            incarnation=self.incarnation,
        )  # fmt: skip

    def heartbeat(self, beat: models.Heartbeat) -> models.HeartbeatAnswer:
        self._call("heartbeat", beat)
        return models.HeartbeatAnswer(incarnation=self.incarnation, wanted=self.wanted)

    def poll(self, *, wait_s: float, slots: Sequence[str] | None) -> Polled:
        self._call("poll", tuple(slots or ()))
        end = time.monotonic() + wait_s
        with self.changed:
            self._polls += 1
            mine = self._polls
            self.changed.notify_all()
            while True:
                orders, self.commands = self.commands, []
                for task in self.tasks:
                    if mine == self._polls and slots and task.slot in slots:
                        self.tasks.remove(task)
                        return Polled(task, [], orders)
                if orders or mine != self._polls or time.monotonic() >= end:
                    return Polled(None, [], orders)
                self.changed.wait(end - time.monotonic())

    def ack(self, lease: models.LeaseRef) -> None:
        self._call("ack", lease)

    def progress(self, lease: models.LeaseRef, pct: float, note: str | None = None) -> None:
        self._call("progress", (pct, note))

    def log(self, lease: models.LeaseRef, offset: int, data: bytes) -> None:
        self._call("log", (offset, data))

    def result(self, result: models.Result, artifacts: Sequence[tuple[str, Path]] = ()) -> None:
        self._call("result", (result, {name: path.read_bytes() for name, path in artifacts}))

    def yield_task(
        self, lease: models.LeaseRef, reason: str, detail: str | None, stopped_ms: float | None
    ) -> None:
        self._call("yield", (lease.task_id, reason, detail, stopped_ms))

    def goodbye(self, reason: str | None = None) -> None:
        self._call("goodbye", reason)

    def fetch_input(
        self, lease: models.LeaseRef, name: str, target: Path, max_bytes: int,
        sha256: str | None = None,
    ) -> None:  # fmt: skip
        self._call("fetch", name)
        target.write_bytes(self.blobs[name])


class Idle:
    """A source that a test turns on and off."""

    name = "owner"

    def __init__(self) -> None:
        self.present: bool | None = False
        self.seen = threading.Event()
        self.age_s = 0.0

    def read(self) -> Reading:
        present = self.present
        if present:
            self.seen.set()
        holder = Holder("owner_active", "the owner", age_s=self.age_s)
        return Reading(self.name, present, "owner_active", holders=(holder,))


class Rig:
    """An agent with its fake control."""

    def __init__(self, agent: Agent, control: FakeControl, owner: Idle) -> None:
        self.agent, self.control, self.owner = agent, control, owner

    def outcome(self, timeout_s: float = 15.0) -> tuple[models.Result, dict[str, bytes]]:
        """The next result, removed from the list of calls."""
        try:
            found = until(lambda: self.control.of("result"), "a result", timeout_s)[0]
        except AssertionError as error:  # what came instead says why
            said = [call for call in self.control.calls if call[0] not in {"poll", "heartbeat"}]
            raise AssertionError(f"{error}; {said}, {obstacles(self.agent)}") from None
        self.control.calls = [call for call in self.control.calls if call[0] != "result"]
        return found

    def run(self, kind: str = "cli", **more: Any) -> tuple[models.Result, dict[str, bytes]]:
        """Give a task and wait for its result."""
        self.control.give(kind, **more)
        return self.outcome()

    def running(self) -> bool:
        """Whether a task's process lives."""
        return any(run.alive() for run in self.agent.runs())


FAST = Settings(
    guard_busy_sec=0.1, guard_idle_sec=0.2, log_tail_sec=0.05, retry_base_sec=0.02,
    retry_cap_sec=0.1, spool_retry_cap_sec=0.1, slow_retry_sec=0.1, poll_wait_sec=5.0,
)  # fmt: skip
MakeRig = Callable[..., Rig]
SLEEP = {"command": "sleep", "args": ["600"]}


def listing(folder: Path) -> list[str]:
    """Names in a folder."""
    return [entry.name for entry in folder.iterdir()]


def remote(rc: str) -> RemoteError:
    return RemoteError(rc, rc, TABLE[rc][0], {})


def start(rig: Rig, **more: Any) -> Any:
    task = rig.control.give(params=SLEEP, **more)
    until(rig.running, "the task runs")
    return task


@dataclass
class Tree:
    """A node's folder, with programs of its own first on the PATH."""

    layout: Layout
    programs: Path
    env: dict[str, str]
    logind: FakeLogind

    def set(self, file: str, *keys: str, to: object) -> None:
        """Change a value in config.yaml or runtime.yaml; None takes it away."""
        path = self.layout.agent / file
        data = part = yaml.safe_load(path.read_text())
        for key in keys[:-1]:
            part = part[key]
        part[keys[-1]] = to
        path.write_text(yaml.safe_dump(data))

    def leave_out(self, source: str) -> None:
        """Take one of the guard's sources away."""
        names = files.NodeConfig.model_fields["guard_sources"].default
        left = [name for name in names if name != source]
        self.set("config.yaml", "guard_sources", to=left)

    def without_nvml(self) -> None:
        """Let NVML be a library that cannot be loaded, found first whatever the machine has."""
        (self.programs / "libnvidia-ml.so.1").touch()
        self.env["LD_LIBRARY_PATH"] = str(self.programs)

    def program(self, name: str, script: str) -> None:
        """Put a program on the PATH."""
        (self.programs / name).write_text(f"#!/bin/sh\n{script}\n")
        (self.programs / name).chmod(0o755)

    def run(
        self, script: str, *argv: str, python: str = sys.executable
    ) -> subprocess.CompletedProcess[str]:
        """Run one of the scripts."""
        command = [python, str(self.layout.agent / script), *argv]
        return subprocess.run(
            command, env=self.env, capture_output=True, text=True, timeout=60, check=False, cwd="/"
        )

    def check(self, script: str, *argv: str, python: str = sys.executable) -> tuple[int, list[str]]:
        """Exit code and reasons of a guard script, once no person uses this machine itself.

        Whoever types in a terminal while the tests run is seen for some eight seconds, and who
        tests remote desktops on hosts of the lab, for as long as they run.
        """
        here = {"tty_active", "remote_desktop", "unaccounted_display"}

        def alone() -> tuple[int, list[str]] | None:
            found = self._verdict(script, argv, python)
            return None if here & {*found[1]} else found

        found: tuple[int, list[str]] = until(alone, "no person uses this machine", 300)
        return found

    def _verdict(self, script: str, argv: Sequence[str], python: str) -> tuple[int, list[str]]:
        done = self.run(script, *argv, python=python)
        assert done.returncode in {0, 1}, done.stderr
        found = json.loads(done.stdout)
        assert found["verdict"] == ("DO NOT RUN" if done.returncode else "SAFE TO RUN")
        assert bool(found["why"]) == bool(done.returncode)
        return done.returncode, found["reasons"]
