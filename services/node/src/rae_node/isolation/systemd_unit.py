"""Tasks as systemd units of their own: the agent connects, root wrote what starts (DESIGN §6)."""

from __future__ import annotations

import contextlib
import os
import socket
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Literal

from rae_node.config.layout import Layout
from rae_node.errors import NodeError
from rae_node.isolation.base import Isolation, Level, Limits, ProcessIsolation, Spec, rlimits
from rae_node.isolation.bubblewrap import Box, prepared, tried
from rae_node.isolation.bubblewrap_view import NOT_SHOWN, NOTHING, PROBE_ENV, View
from rae_node.isolation.supervisor_client import Handle, Line
from rae_node.supervisor import process_tree
from rae_node.workspace.workspace import Workspace

SOCKETS = Path("/run/rae-task")
CGROUPS = Path("/sys/fs/cgroup")
_CONNECT_S = 5.0
_TRIAL_S = 15.0
_PROBE = "probe"


class UnitIsolation:
    """rae-task@.service and rae-task-gpu@.service, by their sockets."""

    level: Level = "unit"
    why = ""

    def __init__(self, root: Path, box: Box, sockets: Path = SOCKETS) -> None:
        self._box, self._sockets = box, sockets
        self._child = ProcessIsolation(root)

    def start(self, spec: Spec) -> Handle:
        """Connect, and hand over the spec. Raises OSError."""
        if spec.trusted:
            return self._child.start(spec)
        box = self._box.order(spec.workspace, spec.shown, spec.devices)
        handle = self._connected("gpu" if spec.devices else "cpu")
        handle.send({**asdict(spec), "cwd": "/", "box": box, "delegated": True})
        return handle

    def wipe(self, folder: Path) -> None:
        """Delete a workspace, with what only the tasks' user may delete. Raises OSError."""
        with contextlib.suppress(PermissionError):
            return process_tree.wipe(str(folder))
        handle = self._connected("cpu")
        handle.send({"sweep": str(folder)})
        handle.wipe(_TRIAL_S)
        return process_tree.wipe(str(folder))

    def end_all(self, bound_s: float) -> int:
        """Kill every task's unit that an earlier agent left. Raises TimeoutError."""
        killed = self._child.end_all(bound_s)
        limit, seen = time.monotonic() + bound_s, set[str]()
        while names := list(self._alive()):
            if time.monotonic() > limit:
                raise TimeoutError(f"units {', '.join(names)} do not end")
            seen.update(names)
            for name in names:
                self._kill(name)
            time.sleep(0.02)
        return killed + len(seen)

    def tried(self, workdir: Path, view: View = NOTHING) -> UnitIsolation:
        """After a task that does nothing, and one that looks for what tasks need.

        Raises NodeError: `no_unit` when units cannot be used, `not_shown` as `box.tried`.
        """
        code, said = self._trial(workdir, ("/usr/bin/true",))
        if code != 0:
            text = f"a trial task in rae-task@.service failed ({said}); look at its journal"
            raise NodeError("no_unit", text)
        if view.shown:
            view.check()
            view.require_success(*self._trial(workdir, view.probe, view.paths), "rae-task@.service")
        return self

    def _trial(
        self, workdir: Path, argv: tuple[str, ...], shown: tuple[Path, ...] = ()
    ) -> tuple[int | None, str]:
        """A task's exit code, None without one, and what it said. Raises NodeError `no_unit`."""
        try:
            workspace = Workspace.create(workdir, _PROBE, os.getpid(), boxed=True)
            limits = Limits(_TRIAL_S, 1 << 20, None, 0, "best-effort", 4, rlimits(1 << 20, 1 << 40))
            until = time.clock_gettime(time.CLOCK_BOOTTIME) + _TRIAL_S
            spec = Spec(
                _PROBE, argv, PROBE_ENV, workspace.work, workspace.path, workspace.logs, until,
                limits, shown=shown,
            )  # fmt: skip
            handle = self.start(spec)
            handle.finished.wait(_TRIAL_S)
            outcome, said = handle.outcome, handle.problem or ""
            said = said or replace(workspace, opener=handle.open).tail(1 << 16)
            handle.wipe(_TRIAL_S)
            self.wipe(workspace.path)
        except OSError as error:
            fix = "install and start rae-task.socket"
            why = f"{self._sockets}/cpu.sock: {error.strerror or error}"
            raise NodeError("no_unit", f"{why}; {fix}") from error
        if outcome is None:
            return None, said or "it died"
        ended = f"{outcome.cause}, exit {outcome.exit_code}"
        return (outcome.exit_code if outcome.cause == "exit" else None), said or ended

    def _connected(self, kind: str) -> Handle:
        line = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            line.settimeout(_CONNECT_S)
            line.connect(str(self._sockets / f"{kind}.sock"))
            line.settimeout(None)
        except OSError:
            line.close()
            raise
        return Handle(Line(line, self._settle, self._kill))

    def _settle(self, unit: str) -> None:
        """Wait for the end of all in the unit's cgroup; systemd sees to that, and we insist."""
        pause, insists = 0.001, time.monotonic() + 1.0
        while unit and _populated(CGROUPS / unit.lstrip("/")):
            time.sleep(pause)
            pause = min(pause * 2, 0.1)
            if time.monotonic() > insists:
                self._kill(unit)

    def _kill(self, unit: str) -> None:
        """The second way: whatever the supervisor does, root kills its unit."""
        name = unit.rpartition("/")[2]
        with contextlib.suppress(OSError), socket.socket(socket.AF_UNIX) as line:
            line.settimeout(_CONNECT_S)
            line.connect(str(self._sockets / "kill.sock"))
            line.sendall(f"{name}\n".encode())
            line.recv(1024)

    @staticmethod
    def _alive() -> Iterator[str]:
        for folder in CGROUPS.glob("rae.slice/rae-task*@*.service"):
            if not folder.name.startswith("rae-task-kill") and _populated(folder):
                yield folder.name


def strongest(layout: Layout, wanted: Level | Literal["auto"], view: View) -> Isolation:
    """The best that works here, no better than wanted; it knows why it is no better.

    Raises NodeError `not_shown` when its box cannot show what tasks need.
    """
    if wanted == "process":
        return ProcessIsolation(layout.root, why="`isolation: process` in config.yaml")
    why = []
    try:
        if wanted != "bubblewrap":
            return UnitIsolation(layout.root, prepared()).tried(layout.workdir, view)
    except NodeError as error:
        if error.rc == NOT_SHOWN:
            raise
        why.append(error.message)
    try:
        # The agent's unit has no /tmp to write to.
        box = tried(prepared(), layout.run if layout.run.is_dir() else None, view)
        return ProcessIsolation(layout.root, box, "; ".join(why))
    except NodeError as error:
        if error.rc == NOT_SHOWN:
            raise
        return ProcessIsolation(layout.root, why="; ".join([error.message, *why]))


def _populated(cgroup: Path) -> bool:
    try:
        return "populated 1" in (cgroup / "cgroup.events").read_text(encoding="ascii")
    except OSError:
        return False
