"""A desk in a virtual machine: hands at its devices, a locker, and what its agent makes of them."""

from __future__ import annotations

import json
import math
import re
import statistics
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from tests.lab import vm_states
from tests.lab.vm_image import USER
from tests.until import until
from tests.vm.guest import Guest, Inside, MakeGuest, Task, inside, running_task, stopped_after_ms

# 600 s in the contract's files: a 250th of that, so that eighty returns take minutes.
IDLE_S = 2.4
SOURCES = ["logind", "input", "tty", "remote", "load", "gpu"]
STOP_MS, BLIND_MS = 1000.0, 2000.0
UNIT = "rae-input"


@dataclass(frozen=True, slots=True)
class Desk:
    """A machine that is lent as it would be to an owner, with the quiet time scaled."""

    guest: Guest

    def status(self) -> dict[str, Any]:
        """What `rae-node status --json` prints."""
        found: dict[str, Any] = json.loads(self.guest.agent("status", "--json"))
        return found

    def why(self) -> str:
        """Why no task is taken now, in the agent's words; empty when one may come."""
        return "; ".join(self.status()["no_task_because"])

    def proven(self) -> bool:
        """Whether input on seat0 is proven to be seen."""
        found = json.loads(self.guest.agent("detector", "status", "--json"))
        return any(one["seat"] == "seat0" and one["proven"] for one in found["seats"])

    def lock(self, *, locked: bool) -> None:
        """Lock or unlock the session on seat0, as a locker reports it to logind."""
        (session,) = vm_states.sessions(self.guest.vm)
        if session["Type"] == "x11":
            verb = "lock-session" if locked else "unlock-session"
            self.guest.vm.run(["loginctl", verb, session["Id"]])
        else:  # sway has no locker that reports; its user may say it
            path = f"/org/freedesktop/login1/session/_3{session['Id']}"
            said = ["org.freedesktop.login1.Session", "SetLockedHint", "b", str(locked).lower()]
            busctl = ["busctl", "call", "org.freedesktop.login1", path, *said]
            self.guest.vm.run(["runuser", "-u", USER, "--", *busctl])
        until(lambda: self._locked() is locked, f"locked is {locked}", 20)

    def _locked(self) -> bool:
        (session,) = vm_states.sessions(self.guest.vm)
        return session["LockedHint"] == "yes"

    def prove(self) -> None:
        """Lock, press a key, unlock: the proof by use."""
        self.lock(locked=True)
        self.guest.vm.qmp.key("shift")
        self.lock(locked=False)
        until(self.proven, "the unlock proves that input is seen", 20, every_s=0.2)

    def work(self) -> Task:
        """Wait until the machine works: the owner's quiet time is over."""
        return running_task(self.guest)

    def returns(self, touch: Callable[[], object], types: str, times: int = 20) -> list[float]:
        """Let the owner come back so often; milliseconds from the event until all is gone."""
        found = []
        for _ in range(times):
            task = self.work()
            found.append(stopped_after_ms(self.guest, task, touch, types))
            if found[-1] > STOP_MS:  # where the time went, beside the failure
                print(f"{found[-1]:.0f} ms:\n{self.guest.vm.unit_log('rae-node')[-2500:]}")
            self.forget(task)
        return found

    def stopped_by(self, command: str) -> float:
        """Milliseconds from the start of a shell command in the guest until the task is gone."""
        task = self.work()
        with inside(self.guest.vm, "after.py", command, *map(str, task.pids)) as program:
            took = float(program.line())
        self.forget(task)
        return took

    def forget(self, task: Task) -> None:
        """Cancel a task that was stopped: it would come back to this machine, its only one."""
        self.guest.mesh.rae.cancel(task.task_id)


def spread(what: str, values: list[float]) -> str:
    """For the test's output."""
    ordered = sorted(values)
    p95 = ordered[math.ceil(0.95 * len(ordered)) - 1]
    return (
        f"{what}: {len(values)} times, p50 {statistics.median(values):.0f} ms, "
        f"p95 {p95:.0f}, max {max(values):.0f}"
    )


def sit_down(make_guest: MakeGuest, state: vm_states.Name, **lent: Any) -> Desk:
    """A lent desk in a state; `lent` goes over what it is lent with."""
    safety = {"idle_required_minutes": IDLE_S / 60, "cooldown_minutes": 0.001}
    wanted = {
        "config": {"guard_sources": SOURCES}, "units": (UNIT, "rae-node"), **lent,
        "settings": {"guard_idle_sec": 1, **lent.get("settings", {})},
        "safety": {**safety, **lent.get("safety", {})},
    }  # fmt: skip
    return Desk(make_guest(state, **wanted))


@contextmanager
def gamepad(guest: Guest, kind: str = "pad") -> Iterator[Pad]:
    """A device of uinput's (a `pad`, or a `touch` screen), plugged in while the block runs."""
    guest.vm.run(["modprobe", "uinput"])
    with inside(guest.vm, "pad.py", kind) as program:
        assert re.match(r"ready /dev/input/event\d+", program.line())
        yield Pad(program)


@dataclass(frozen=True, slots=True)
class Pad:
    """Its buttons and sticks."""

    program: Inside

    def send(self, kind: str, code: str, value: int) -> None:
        """One event."""
        self.program.say(f"{kind} {code} {value}")
        assert self.program.line() == "done"

    def press(self) -> None:
        """A button, down and up."""
        self.send("key", "BTN_SOUTH", 1)
        self.send("key", "BTN_SOUTH", 0)
