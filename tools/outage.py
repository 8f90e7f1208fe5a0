"""Control away for five minutes, with the contract's own periods (`--scale 20` for a quick look).

A task that may outlive a silence of ten minutes finishes, and its result arrives after the restart,
once. One with the default lease is stopped at its deadline and runs again, once. The node comes
back without registering. Exit code 1 when anything of this does not hold.
"""

from __future__ import annotations

import argparse
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from tools.devmesh import DevMesh, MeshError, exit_on_signals, install_stamp, wait_until
from tools.stamp import stamps_in

CONTRACT = {
    "heartbeat_interval_s": 30.0, "heartbeat_timeout_s": 120.0, "ack_timeout_s": 10.0,
    "default_lease_ttl_s": 120.0, "lease_margin_s": 10.0, "reconcile_interval_s": 10.0,
    "reaper_interval_s": 1.0, "retry_backoff_s": 5.0, "interruption_pause_s": 10.0,
}  # fmt: skip
AWAY_S, WORK_S, PATIENT_TTL_S = 300.0, 160.0, 600.0


def stamps_of(file: Path, task_id: str) -> list[dict[str, Any]]:
    """What a task wrote down."""
    return [stamp for stamp in stamps_in(file) if stamp["task"] == task_id]


def attempts_that(file: Path, task_id: str, what: str) -> list[int]:
    """Attempts with such a stamp."""
    return [stamp["attempt"] for stamp in stamps_of(file, task_id) if stamp["what"] == what]


def run(scale: float) -> list[str]:
    """The whole course; returns what did not hold."""
    control: dict[str, object] = {name: value / scale for name, value in CONTRACT.items()}
    node: dict[str, object] = {"heartbeat_interval_sec": 30 / scale, "max_concurrent_cpu": 2}
    with DevMesh((), control=control) as mesh:
        stamps = mesh.data / "stamps"
        mesh.add_node("n1", {**node, "task_paths": [str(install_stamp(mesh.data))]})
        mesh.wait_node("n1", "online")
        body = {
            "kind": "python",
            "params": {
                "task": "stamp",
                "params": {"stamps": str(stamps), "seconds": WORK_S / scale},
            },
        }
        patient, strict = (
            ref.task_id
            for ref in mesh.rae.submit([{**body, "lease_ttl_s": PATIENT_TTL_S / scale}, body])
        )
        wait_until(lambda: stamps_of(stamps, patient) and stamps_of(stamps, strict), 60, "both run")
        registered = _registrations(mesh)
        mesh.control.stop()
        print(f"control is away for {AWAY_S / scale:g} s", flush=True)
        # The outage itself: nothing to wait for, it only has to last.
        threading.Event().wait(AWAY_S / scale)
        died = max(stamp["at"] for stamp in stamps_of(stamps, strict))
        away = time.clock_gettime(time.CLOCK_BOOTTIME) - died
        print(f"the task with the default lease was silent for {away:.0f} s of it", flush=True)
        before = attempts_that(stamps, patient, "end"), attempts_that(stamps, strict, "end")
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
            "each ended once": attempts_that(stamps, patient, "end") == [1]
            and attempts_that(stamps, strict, "end") == [2],
            "no two attempts lived at once": died
            < min(s["at"] for s in stamps_of(stamps, strict) if s["attempt"] == 2),
            "the node did not register again": _registrations(mesh) == registered,
        }
    for name, holds in checks.items():
        print(f"{'yes' if holds else 'NO ':3}  {name}")
    return [name for name, holds in checks.items() if not holds]


def _registrations(mesh: DevMesh) -> int:
    return sum(event.reason == "registered" for event in mesh.admin.events().events)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(description="Control away for five minutes.")
    parser.add_argument("--scale", type=float, default=1.0, help="divide every period by this")
    args = parser.parse_args(argv)
    exit_on_signals()
    try:
        return 1 if run(args.scale) else 0
    except KeyboardInterrupt:
        return 130
    except (MeshError, TimeoutError) as error:
        print(f"outage: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
