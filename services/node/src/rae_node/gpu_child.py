"""NVML in a process that can be killed: a line of JSON in, one out.

`{}` asks for every GPU, `{"pci": ["0000:01:00.0"]}` for these alone, and `"release": true` lets go
of NVML after the answer, so that a GPU may fall asleep. Answers `{"gpus": […]}`, `{"absent": true}`
without NVML's library, or `{"error": "…"}`. Only pynvml and the standard library: it stays small.
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys
import time
from typing import Any

import pynvml

_MIB = 1024 * 1024
_WINDOW_S = 1.5  # how far back the use of single processes is asked for
_PR_SET_PDEATHSIG = 1


def look(wanted: list[str] | None) -> list[dict[str, Any]]:
    """What NVML says now. Raises NVMLError."""
    if wanted is None:
        every = range(pynvml.nvmlDeviceGetCount())
        return [_facts(pynvml.nvmlDeviceGetHandleByIndex(index)) for index in every]
    return [_facts(pynvml.nvmlDeviceGetHandleByPciBusId(name)) for name in wanted]


def _facts(handle: Any) -> dict[str, Any]:
    """One GPU. Raises NVMLError for what the guard cannot do without."""
    processes: dict[int, int | None] = {}
    for ask in (
        pynvml.nvmlDeviceGetComputeRunningProcesses,
        pynvml.nvmlDeviceGetGraphicsRunningProcesses,
    ):
        for one in ask(handle):
            known = processes.get(one.pid)
            processes[one.pid] = one.usedGpuMemory if known is None else known
    memory = pynvml.nvmlDeviceGetMemoryInfo(handle)
    return {
        "percent": pynvml.nvmlDeviceGetUtilizationRates(handle).gpu,
        "used_mb": memory.used / _MIB,
        "free_mb": memory.free / _MIB,
        "processes": [
            [pid, None if used is None else used / _MIB] for pid, used in processes.items()
        ],
        "shares": _shares(handle),
    }


def _shares(handle: Any) -> list[list[float]] | None:
    """[pid, percent] of the last moments; None where this GPU does not tell."""
    try:
        since = int((time.time() - _WINDOW_S) * 1e6)
        found = pynvml.nvmlDeviceGetProcessUtilization(handle, since)
    except pynvml.NVMLError as error:
        nothing = {pynvml.NVML_SUCCESS, pynvml.NVML_ERROR_NOT_FOUND}
        return [] if error.value in nothing else None
    return [[one.pid, one.smUtil] for one in sorted(found, key=lambda one: one.timeStamp)]


def main() -> int:
    """Answer until nobody asks any more; killed with whoever started it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    held = False
    for line in sys.stdin:
        request = json.loads(line)
        said: dict[str, Any]
        try:
            if not held:
                pynvml.nvmlInit()
                held = True
            said = {"gpus": look(request.get("pci"))}
        except pynvml.NVMLError_LibraryNotFound:
            said = {"absent": True}
        except pynvml.NVMLError as error:
            said = {"error": str(error)}
        print(json.dumps(said), flush=True)
        # After an error, too: only a fresh start meets a driver that was mended.
        if held and (request.get("release") or "error" in said):
            pynvml.nvmlShutdown()
            held = False
    return 0


if __name__ == "__main__":
    sys.exit(main())
