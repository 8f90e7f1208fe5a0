"""What a box costs, and how fast everything in it dies. Prints JSON; run it as no root.

`python -m tools.bench.box STARTS KILLS [FOLDER]`: with a folder where units may write, on a host
that has them, tasks run at level `unit`, else at level `bubblewrap`.

Starts: from the order to the program's first word, plain and boxed in turn. Kills: a task of 500
processes in three sessions, from the order until the supervisor has seen the last one dead.
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

from rae_node.isolation.base import Isolation, Limits, ProcessIsolation, Spec, rlimits
from rae_node.isolation.bubblewrap import prepared, tried
from rae_node.isolation.supervisor_client import Handle
from rae_node.isolation.systemd_unit import UnitIsolation
from rae_node.workspace.box_paths import interpreter
from rae_node.workspace.workspace import Workspace

MANY = """
import os, signal
for _ in range(3):
    if os.fork() == 0:
        os.setsid()
        for _ in range(165):
            if os.fork() == 0:
                break
        signal.pause()
os.write(1, b'ready')
signal.pause()
"""


class Bench:
    """Starts tasks in workspaces of their own, plain or boxed."""

    def __init__(self, folder: Path, *, units: bool) -> None:
        self._folder, self._number = folder, 0
        box: Isolation = (
            UnitIsolation(folder, prepared()) if units
            else ProcessIsolation(folder, tried(prepared()))
        )  # fmt: skip
        self._kinds: dict[bool, Isolation] = {False: ProcessIsolation(folder), True: box}

    def start(self, argv: tuple[str, ...], *, boxed: bool) -> tuple[Handle, Workspace]:
        """Order a task; returns at once."""
        self._number += 1
        workspace = Workspace.create(self._folder, "t", self._number, boxed=boxed)
        limits = Limits(60, 1 << 20, None, 0, "best-effort", 4, rlimits(1 << 26, 1 << 40))
        spec = Spec(
            f"lease-{self._number}", argv, {"PATH": "/usr/bin:/bin"}, workspace.work,
            workspace.path, workspace.logs, time.clock_gettime(time.CLOCK_BOOTTIME) + 60, limits,
            shown=interpreter(),
        )  # fmt: skip
        handle = self._kinds[boxed].start(spec)
        return handle, replace(workspace, opener=handle.open)

    def first_word_ms(self, *, boxed: bool) -> float:
        """Until the program says what time it is."""
        before = time.time()
        handle, workspace = self.start(("/usr/bin/date", "+%s.%N"), boxed=boxed)
        handle.finished.wait(30)
        word = float(workspace.head("stdout", 100)[0])
        handle.wipe(10)
        return (word - before) * 1000

    def kill_ms(self) -> float:
        """Until the last of 500 processes is gone."""
        handle, workspace = self.start((sys.executable, "-I", "-c", MANY), boxed=True)
        while workspace.head("stdout", 100)[0] != "ready":
            time.sleep(0.01)
        time.sleep(0.2)  # the last ones are being forked
        before = time.monotonic()
        handle.kill()
        handle.gone.wait(30)
        took = (time.monotonic() - before) * 1000
        handle.wipe(10)
        return took


def main() -> int:
    """Measure and print."""
    samples, kills = int(sys.argv[1]), int(sys.argv[2])
    with tempfile.TemporaryDirectory(prefix="rae-bench-") as name:
        units = len(sys.argv) > 3
        bench = Bench(Path(sys.argv[3] if units else name), units=units)
        for boxed in (False, True):
            bench.first_word_ms(boxed=boxed)
        pairs = [(bench.first_word_ms(boxed=False), bench.first_word_ms(boxed=True))
                 for _ in range(samples)]  # fmt: skip
        found = {
            "plain": [plain for plain, _ in pairs], "boxed": [boxed for _, boxed in pairs],
            "kills": [bench.kill_ms() for _ in range(kills)],
        }  # fmt: skip
    print(json.dumps(found))
    return 0


if __name__ == "__main__":
    sys.exit(main())
