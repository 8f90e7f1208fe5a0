"""NVML in a process that can be killed: a line of JSON in, one out.

`{}` asks for every GPU, `{"pci": ["0000:01:00.0"]}` for these alone; `"back_s"` is how far back the
use may be averaged at most, in seconds, and `"release": true` lets go of NVML after the
answer, so that a GPU may fall asleep. Answers `{"gpus": […]}`, `{"absent": true}` without NVML's
library, or `{"error": "…"}`. Only pynvml and the standard library: it stays small.
"""

from __future__ import annotations

import ctypes
import json
import signal
import sys
from collections.abc import Iterable
from dataclasses import dataclass, field
from statistics import fmean
from typing import Any

import pynvml

_MIB = 1024 * 1024
_BACK_S = 1.5
_PR_SET_PDEATHSIG = 1
_TRIES = 3
# This driver, GPU or user cannot have it; every other error is trouble.
_UNKNOWN = frozenset(
    (
        pynvml.NVML_ERROR_NOT_SUPPORTED,
        pynvml.NVML_ERROR_FUNCTION_NOT_FOUND,
        pynvml.NVML_ERROR_NO_PERMISSION,
    )
)
# No sample is newer; pynvml raises for an empty answer, too.
_NOTHING = frozenset((pynvml.NVML_SUCCESS, pynvml.NVML_ERROR_NOT_FOUND))


@dataclass(slots=True)
class Seen:
    """How far the samples of one GPU have been read, by NVML's own stamps in microseconds.

    Nothing is compared with a clock of this machine: stamps may count from boot, lag by seconds, or
    be set back. `newest`: of the processes' samples, None before the first look; `of`: the last
    stamp of each process; `whole`: the newest of the whole GPU's samples.
    """

    newest: int | None = None
    of: dict[int, int] = field(default_factory=dict)
    whole: int = 0

    def new(self, rows: Iterable[Any]) -> list[Any]:
        """Those that have not been counted; rows without a stamp only fill NVML's list."""
        return [one for one in rows if one.timeStamp and one.timeStamp != self.of.get(one.pid)]


def look(
    wanted: list[str] | None, back_s: float, seen: dict[int | str, Seen]
) -> list[dict[str, Any]]:
    """What NVML says now. `seen`: kept from look to look. Raises NVMLError."""
    gpus: dict[int | str, Any]
    if wanted is None:
        every = range(pynvml.nvmlDeviceGetCount())
        gpus = {index: pynvml.nvmlDeviceGetHandleByIndex(index) for index in every}
    else:
        gpus = {name: pynvml.nvmlDeviceGetHandleByPciBusId(name) for name in wanted}
    back = int(back_s * 1e6)
    return [
        _Gpu(handle, seen.setdefault(which, Seen())).facts(back) for which, handle in gpus.items()
    ]


class _Gpu:
    """One GPU, and by NVML's calls why it cannot answer them."""

    def __init__(self, handle: Any, seen: Seen) -> None:
        self._handle, self._seen = handle, seen
        self._unknown: dict[str, str] = {}

    def facts(self, back: int) -> dict[str, Any]:
        """In guard/gpu_use.py's words. `back`: microseconds. Raises NVMLError."""
        rates = self._ask("nvmlDeviceGetUtilizationRates")
        memory = self._ask("nvmlDeviceGetMemoryInfo")
        whole = self._whole()
        shares = self._shares(back, max((stamp for stamp, _ in whole), default=None))
        recent = {"sm": self._recent(whole, back, rates)}
        for name in ("Encoder", "Decoder"):
            used = self._ask(f"nvmlDeviceGet{name}Utilization")
            recent[name.lower()] = None if used is None else used[0]
        return {
            "now": {} if rates is None else {"sm": rates.gpu},
            "recent": {name: used for name, used in recent.items() if used is not None},
            "used_mb": None if memory is None else memory.used / _MIB,
            "free_mb": None if memory is None else memory.free / _MIB,
            "clients": self._clients(),
            "shares": None
            if shares is None
            else [[one.pid, one.smUtil, one.encUtil, one.decUtil] for one in shares],
            "streams": [
                *self._streams("nvmlDeviceGetEncoderSessions", "encodes video"),
                *self._streams("nvmlDeviceGetFBCSessions", "captures the screen"),
            ],
            "unknown": self._unknown,
        }

    def _clients(self) -> list[list[Any]]:
        """[pid, MiB, whether it draws] of every process that has the GPU open."""
        found: dict[int, list[Any]] = {}
        for name, draws in (
            ("nvmlDeviceGetComputeRunningProcesses", False),
            ("nvmlDeviceGetGraphicsRunningProcesses", True),
        ):
            for one in self._ask(name) or ():
                used = None if one.usedGpuMemory is None else one.usedGpuMemory / _MIB
                known = found.get(one.pid, [one.pid, None, False])
                found[one.pid] = [one.pid, used if known[1] is None else known[1], draws]
        return list(found.values())

    def _streams(self, name: str, what: str) -> list[list[Any]]:
        sessions = self._ask(name) or ()
        return [[one.pid, f"{what} of {one.hResolution}x{one.vResolution}"] for one in sessions]

    def _shares(self, back: int, now: int | None) -> list[Any] | None:
        """Single processes' use since the look before, but no further back than that.

        None where the driver does not give it, or where at the first look nothing says how old it
        is. `now`: the newest stamp of the whole GPU's samples, which NVML takes without a pause.
        """
        seen, since = self._seen, self._seen.newest or 0
        rows = self._processes(since)
        if rows is None:
            return None
        found = seen.new(rows)
        if not found and since:
            # Nothing has a newer stamp. If a process has another one all the same, NVML's clock was
            # set back.
            since, rows = 0, self._processes(0) or ()
            found = seen.new(rows)
        # The stamp of a row with a figure that is made up is made up, too (Syllo/nvtop#110).
        stamps = [one.timeStamp for one in found if _plausible(one)]
        first, newest = seen.newest is None, max(stamps, default=seen.newest or 0)
        counted = now if first else newest
        if found and counted is not None and counted - back > since:
            found = seen.new(self._processes(counted - back) or ())
        seen.newest = newest
        seen.of.update({one.pid: one.timeStamp for one in (*rows, *found)})
        return None if rows and counted is None else found

    def _processes(self, since: int) -> Any:
        return self._samples("nvmlDeviceGetProcessUtilization", since)

    def _whole(self) -> list[tuple[int, int]]:
        """The samples of the whole GPU: stamp, and percent of its processors."""
        found = self._samples("nvmlDeviceGetSamples", pynvml.NVML_GPU_UTILIZATION_SAMPLES, 0)
        every = [(one.timeStamp, one.sampleValue.uiVal) for one in (found[1] if found else ())]
        return [(stamp, used) for stamp, used in every if stamp and used <= 100]

    def _recent(self, whole: list[tuple[int, int]], back: int, rates: Any) -> float | None:
        """The mean use of the processors of late; without new samples that of this moment."""
        newest = max((stamp for stamp, _ in whole), default=self._seen.whole)
        if newest == self._seen.whole:
            return None if rates is None else rates.gpu
        self._seen.whole = newest
        return fmean(used for stamp, used in whole if stamp > newest - back)

    def _samples(self, name: str, *args: Any) -> Any:
        try:
            return self._ask(name, *args)
        except pynvml.NVMLError as error:
            if error.value in _NOTHING:
                return ()
            raise

    def _ask(self, name: str, *args: Any) -> Any:
        """What a call says; None where it cannot be made here. Raises NVMLError."""
        for left in reversed(range(_TRIES)):
            try:
                return getattr(pynvml, name)(self._handle, *args)
            except pynvml.NVMLError as error:
                if error.value in _UNKNOWN:
                    self._unknown[name] = str(error)
                    return None
                # Processes have begun between NVML's count and its list.
                if error.value != pynvml.NVML_ERROR_INSUFFICIENT_SIZE or not left:
                    raise
        return None


def _plausible(row: Any) -> bool:
    return all(used <= 100 for used in (row.smUtil, row.encUtil, row.decUtil))


def main() -> int:
    """Answer until the pipe is closed; killed with whoever started it."""
    ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0)
    held = False
    seen: dict[int | str, Seen] = {}
    for line in sys.stdin:
        request = json.loads(line)
        said: dict[str, Any]
        try:
            if not held:
                pynvml.nvmlInit()
                held = True
            said = {"gpus": look(request.get("pci"), request.get("back_s", _BACK_S), seen)}
        except pynvml.NVMLError_LibraryNotFound:
            said = {"absent": True}
        except pynvml.NVMLError as error:
            said = {"error": str(error)}
        print(json.dumps(said), flush=True)
        # After an error, too: only a fresh start meets a driver that was repaired.
        if held and (request.get("release") or "error" in said):
            pynvml.nvmlShutdown()
            held = False
    return 0


if __name__ == "__main__":
    sys.exit(main())
