"""`make test-gpu`: the guard's GPU source before real programs, with what NVML says of them.

Exit code 0: all is as it must be, or there is no NVIDIA GPU, which one line says; 1: it is not.
"""

from __future__ import annotations

import json
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rae_node.guard.gpu_rules import Resting
from rae_node.guard.gpu_use import WINDOW_S
from rae_node.guard.sources.gpu import GpuSource, program_of
from rae_node.host.nvml import NvmlChild

_CLIENT = Path(__file__).with_name("client.py")
_FOREIGN = "foreign_gpu_process"
_PATIENCE_S = 10 + 2 * WINDOW_S


@dataclass
class Shown:
    """The real NVML; remembers its last answer."""

    child: NvmlChild = field(default_factory=NvmlChild)
    last: dict[str, Any] = field(default_factory=dict)

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """As NvmlChild's."""
        self.last = self.child.ask(request, max(timeout_s, 30.0))
        return self.last

    def close(self) -> None:
        """As NvmlChild's."""
        self.child.close()


@dataclass
class Bench:
    """One GPU source after another, and what they saw that they should not have seen."""

    nvml: Shown
    wrong: list[str] = field(default_factory=list)

    def see(
        self, what: str, pid: int, code: str, *, says: str = "", ours: bool = False, name: str = ""
    ) -> None:
        """Look once a second until it is as it must be; print what NVML and the source say.

        `code`: the cause that must name the process, with these words; without, none may. `name`:
        a program that the owner lets rest.
        """
        consent = Resting(frozenset({name} - {""}))
        mine = [pid] if ours else []
        source = GpuSource(True, self.nvml, ours=lambda: mine, resting=lambda: consent)
        end = time.monotonic() + _PATIENCE_S
        while True:
            reading = source.read()
            causes = [one for one in reading.holders if f"process {pid})" in one.who]
            found = {one.code: str(one) for one in causes}
            right = says in found[code] if code in found else not found and not code
            if right or time.monotonic() > end:
                break
            time.sleep(1.0)  # the guard's own pace beside a task
        print(f"\n{'right' if right else 'WRONG'}: {what}")
        print(f"  NVML: {json.dumps(self.nvml.last)}")
        print(f"  measures {dict(reading.measures)}, now {dict(reading.peaks)}")
        for holder in reading.holders:
            print(f"  {holder.code}: {holder}")
        if not right:
            self.wrong.append(what)


@contextmanager
def client(api: str, mode: str) -> Iterator[tuple[int, str]]:
    """A program on the GPU: its pid, or 0 and why there is none."""
    command = [sys.executable, str(_CLIENT), api, mode]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        said = process.stdout.readline().strip() or "it ended"
        yield (process.pid, "") if said == "ready" else (0, said)
        process.kill()


def compute(bench: Bench) -> bool:
    """A CUDA program, at rest and at work; whether it could be started."""
    for mode in ("idle", "busy"):
        with client("cuda", mode) as (pid, why):
            if not pid:
                print(f"\nthe CUDA program did not run: {why}")
                return False
            bench.see(f"a CUDA program, {mode}, blocks", pid, _FOREIGN, says="computes on the GPU")
            bench.see(f"a CUDA program of ours, {mode}, does not count", pid, "", ours=True)
    return True


def graphics(bench: Bench) -> bool:
    """A program that draws, at rest and at work; whether it could be started."""
    for mode, code in (("idle", ""), ("busy", "gpu_in_use")):
        with client("graphics", mode) as (pid, why):
            if not pid:
                print(f"\nthe graphics program did not run: {why}")
                return False
            program = program_of(pid)
            name = program.name if program else ""
            line = f"gpu_may_rest: [{name}]"
            bench.see(f"a graphics program, {mode}, blocks", pid, _FOREIGN, says=line)
            what = f"a graphics program, {mode}, that may rest: {code or 'does not count'}"
            bench.see(what, pid, code, name=name)
    return True


def main() -> int:
    """Look at all of them."""
    with closing(Shown()) as nvml:
        try:
            found = nvml.ask({}, 30.0)
        except (OSError, ValueError) as error:
            found = {"error": str(error)}
        if not found.get("gpus"):
            why = found.get("error") or (
                "NVML shows none" if "gpus" in found else "no NVML library"
            )
            print(f"make test-gpu: nothing ran, for there is no NVIDIA GPU here ({why})")
            return 0
        print(f"before: {json.dumps(found)}")
        bench = Bench(nvml)
        ran = [compute(bench), graphics(bench)]
        print(f"\n{len(bench.wrong)} wrong: {bench.wrong}; programs that ran: {sum(ran)} of 2")
        return 1 if bench.wrong or not all(ran) else 0


if __name__ == "__main__":
    sys.exit(main())
