"""GPU use that is not ours, through NVML, and without waking a GPU that sleeps."""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Collection
from pathlib import Path
from typing import Any, Protocol

from rae_node.errors import NodeError
from rae_node.guard import gpu_rules as rules
from rae_node.guard.gpu_rules import Program, Resting, Verdict
from rae_node.guard.gpu_use import WINDOW_S, Look, facts_of, take
from rae_node.guard.policy import Reading
from rae_node.supervisor.process_tree import read_proc

PCI_DEVICES = Path("/sys/bus/pci/devices")
_TIMEOUT_S = 3.0  # then the child is killed; the guard itself waits much less
_SHORTEST_S = 1.5  # NVML takes a sample each second, on some GPUs six


class Nvml(Protocol):
    """gpu.NvmlChild, or a test's own."""

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """One question to nvml_child.py. Raises OSError, ValueError."""
        ...

    def close(self) -> None:
        """Not needed for a while."""
        ...


class GpuSource:
    """Programs that need a GPU, and use above the limits; the worst GPU counts.

    `expected`: what config.yaml says of a GPU. Where no GPU is to be seen, neither on the bus nor
    through NVML, there is nothing to protect, unless one is expected. A GPU that sleeps has no
    user; asking would wake it.

    `ours`: pids of our own work. `resting`: the owner's consent, asked at each look; `owner_file`:
    where he gives it. `window_s`: over which activity is averaged. `program`: a process by pid,
    None when it has ended.
    """

    name = "gpu"

    def __init__(
        self,
        expected: bool | None,
        nvml: Nvml,
        *,
        ours: Callable[[], Collection[int]],
        resting: Callable[[], Resting] = Resting,
        owner_file: str = rules.OWNER_FILE,
        window_s: float = WINDOW_S,
        program: Callable[[int], Program | None] | None = None,
        pci: Path = PCI_DEVICES,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._expected, self._nvml, self._pci = expected, nvml, pci
        self._ours_now, self._resting, self._owner_file = ours, resting, owner_file
        self._window, self._monotonic = window_s, monotonic
        self._program = program or program_of
        self._none_there = False
        self._mine: dict[int, float] = {}  # when a pid was last ours
        self._asked: list[str] | None = None
        self._looks: list[deque[Look]] = []  # by GPU, those of the window
        self._looked: float | None = None

    def read(self) -> Reading:
        """Look. Raises NodeError, OSError, ValueError, LookupError, TypeError."""
        shown = nvidia_gpus(self._pci)
        awake = [name for name, (status, _) in shown.items() if status != "suspended"]
        if shown and not awake:
            self._nvml.close()
            return Reading(self.name)
        if shown or not self._none_there:
            now = self._monotonic()
            self._ours(now)
            gpus = self._ask(shown, awake, now)
            if len(gpus) < len(awake) and gpus:
                raise NodeError(
                    "blind",
                    f"NVML shows {len(gpus)} of the {len(awake)} GPUs that are awake on the bus; "
                    "make `nvidia-smi` show all of them, or take the others off the bus",
                )
            if gpus:  # processes begin and end while we look
                whole = len(awake) == len(shown)  # what sleeps is not asked
                return self._reading(gpus, self._ours(now), now, whole)
            self._none_there = not shown
        if self._expected or shown:
            raise NodeError(
                "blind",
                "a GPU is expected, and NVML shows none; install NVIDIA's driver with "
                "libnvidia-ml.so.1, or say `gpu: false` in config.yaml if there is none",
            )
        self._nvml.close()
        return Reading(self.name)

    def _ours(self, now: float) -> Collection[int]:
        """What is ours, or was within the window: NVML knows a process for a while longer."""
        since = now - self._window
        self._mine = {pid: at for pid, at in self._mine.items() if at > since}
        self._mine.update(dict.fromkeys(self._ours_now(), now))
        return self._mine

    def _ask(
        self, shown: dict[str, tuple[str, str]], awake: list[str], now: float
    ) -> list[dict[str, Any]]:
        wanted = awake if len(awake) < len(shown) else None
        if wanted != self._asked:
            self._asked, self._looks, self._looked = wanted, [], None
        since = self._window if self._looked is None else now - self._looked
        request: dict[str, Any] = {} if wanted is None else {"pci": wanted}
        request["back_s"] = min(self._window, max(_SHORTEST_S, since))
        # Who holds NVML keeps every GPU awake that could sleep.
        request["release"] = any(control == "auto" for _, control in shown.values())
        answer = self._nvml.ask(request, _TIMEOUT_S)
        if "error" in answer:
            raise NodeError("blind", f"NVML fails ({answer['error']}); see what `nvidia-smi` says")
        self._looked = now
        found: list[dict[str, Any]] = [] if "absent" in answer else answer["gpus"]
        return found

    def _reading(
        self, gpus: list[dict[str, Any]], ours: Collection[int], now: float, whole: bool
    ) -> Reading:
        known: dict[int, Program | None] = {}

        def program(pid: int) -> Program | None:
            if pid not in known:
                known[pid] = self._program(pid)
            return known[pid]

        facts = [facts_of(gpu) for gpu in gpus]
        consent = self._resting()
        if len(self._looks) != len(facts):
            self._looks = [deque() for _ in facts]
        found: list[Verdict] = []
        for gpu, looks in zip(facts, self._looks, strict=True):
            look = take(gpu, now, ours, looks, lambda pid: program(pid) is not None, self._window)
            while looks and now - looks[0].at >= self._window:
                looks.popleft()
            looks.append(look)
            found.append(rules.decide(gpu, looks, ours, program, consent, self._owner_file))
        causes = tuple(dict.fromkeys(cause for one in found for cause in one.causes))
        for one in found:
            if one.blind and not causes:
                raise NodeError("blind", one.blind)
        vram_mb = _worst([one.vram_mb for one in found])
        peak = _worst([one.peak for one in found])
        free = _worst([gpu.free_mb for gpu in facts], sum)
        return Reading(
            self.name,
            bool(causes),
            causes[0].code if causes else "",
            measures={
                "gpu_percent": _worst([one.percent for one in found]),
                "vram_gb": None if vram_mb is None else round(vram_mb / 1024, 3),
            },
            vram_free_mb=free if whole else None,
            holders=causes,
            peaks={} if peak is None else {"gpu_percent": peak},
        )


def _worst(values: list[float | None], of: Callable[[list[float]], float] = max) -> float | None:
    """The highest, or None where one is not known."""
    known = [value for value in values if value is not None]
    return of(known) if len(known) == len(values) else None


def program_of(pid: int) -> Program | None:
    """A process as /proc tells of it; None when it has ended."""
    status = read_proc(f"{pid}/status").decode(errors="replace")
    if status:
        facts = dict(line.partition(":\t")[::2] for line in status.split("\n"))
        command = rules.command_of(read_proc(f"{pid}/cmdline").decode(errors="replace"))
        return Program(pid, facts["Name"], command, int(facts["Uid"].split()[0]))
    return Program(pid) if _hidden(pid) else None


def _hidden(pid: int) -> bool:
    """Whether there is such a process although /proc does not show it."""
    try:
        os.kill(pid, 0)
    except PermissionError:
        return True
    except OSError:
        return False
    return pid > 0


def nvidia_gpus(pci: Path) -> dict[str, tuple[str, str]]:
    """NVIDIA's display devices on the bus: (runtime status, runtime control) by address."""
    found = {}
    for device in sorted(pci.iterdir()) if pci.is_dir() else ():
        if _read(device / "vendor") == "0x10de" and _read(device / "class").startswith("0x03"):
            power = device / "power"
            found[device.name] = _read(power / "runtime_status"), _read(power / "control")
    return found


def _read(file: Path) -> str:
    try:
        return file.read_text(encoding="ascii").strip()
    except OSError:  # gone in this moment, or an older kernel
        return ""
