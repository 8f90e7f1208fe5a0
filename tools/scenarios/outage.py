"""Control away for five minutes, with the contract's own periods (`--scale 20` for a quick look).

A task that may outlive a silence of ten minutes finishes, and its result arrives after the restart,
once. One with the default lease is stopped at its deadline and runs again, once. The node comes
back without registering. Exit code 1 when anything of this does not hold.
"""

from __future__ import annotations

import argparse
import threading
import time
from pathlib import Path

from tools.devmesh import DevMesh, wait_until
from tools.scenarios.audit import lives_of
from tools.scenarios.load import add_nodes, stamp
from tools.stamp import stamps_in

CONTRACT = {
    "heartbeat_interval_s": 30.0, "heartbeat_timeout_s": 120.0, "ack_timeout_s": 10.0,
    "default_lease_ttl_s": 120.0, "lease_margin_s": 10.0, "reconcile_interval_s": 10.0,
    "reaper_interval_s": 1.0, "retry_backoff_s": 5.0, "interruption_pause_s": 10.0,
}  # fmt: skip
AWAY_S, WORK_S, PATIENT_TTL_S = 300.0, 160.0, 600.0


def ended(file: Path, task_id: str) -> list[int]:
    """The attempts of a task that came to their end."""
    found = [stamp for stamp in stamps_in(file) if stamp["task"] == task_id]
    return [stamp["attempt"] for stamp in found if stamp["what"] == "end"]


def options(parser: argparse.ArgumentParser) -> None:
    """How long."""
    parser.add_argument("--scale", type=float, default=1.0, help="divide every period by this")


def run(args: argparse.Namespace) -> int:
    """The whole course; returns the exit code."""
    scale: float = args.scale
    control = {name: value / scale for name, value in CONTRACT.items()}
    with DevMesh((), control=control) as mesh:
        stamps = mesh.data / "stamps"
        add_nodes(mesh, ["n1"], mesh.data, heartbeat_interval_sec=30 / scale)
        body = stamp(stamps, WORK_S / scale)
        refs = mesh.rae.submit([{**body, "lease_ttl_s": PATIENT_TTL_S / scale}, body])
        patient, strict = (ref.task_id for ref in refs)
        begun = {patient, strict}
        wait_until(lambda: begun == {one["task"] for one in stamps_in(stamps)}, 60, "both run")
        registered = _registrations(mesh)
        mesh.control.stop()
        print(f"control is away for {AWAY_S / scale:g} s", flush=True)
        # The outage itself: nothing to wait for, it only has to last.
        threading.Event().wait(AWAY_S / scale)
        died = max(one["at"] for one in stamps_in(stamps) if one["task"] == strict)
        away = time.clock_gettime(time.CLOCK_BOOTTIME) - died
        print(f"the task with the default lease was silent for {away:.0f} s of it", flush=True)
        before = ended(stamps, patient), ended(stamps, strict)
        mesh.start_control()
        first = mesh.rae.wait(patient, 60 + 120 / scale)
        second = mesh.rae.wait(strict, 60 + 2 * (WORK_S + 120) / scale)
        checks = {
            "the patient task ended while control was away": before[0] == [1],
            "the strict task did not": before[1] == [],
            "the patient task succeeded in one attempt": (first.state.value, first.attempts)
            == ("succeeded", 1),
            "the strict task succeeded in its second": (second.state.value, second.attempts)
            == ("succeeded", 2),
            "each ended once": (ended(stamps, patient), ended(stamps, strict)) == ([1], [2]),
            "no two attempts lived at once": lives_of(stamps) == (3, []),
            "the node did not register again": _registrations(mesh) == registered,
        }
    for name, holds in checks.items():
        print(f"{'yes' if holds else 'NO ':3}  {name}")
    return 0 if all(checks.values()) else 1


def _registrations(mesh: DevMesh) -> int:
    return sum(event.reason == "registered" for event in mesh.admin.events().events)
