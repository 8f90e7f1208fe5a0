"""GPU use that is not ours, through NVML, and without waking a GPU that sleeps."""

from __future__ import annotations

from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

from rae_node.errors import NodeError
from rae_node.guard.policy import Reading
from rae_node.proctree import read_proc

PCI_DEVICES = Path("/sys/bus/pci/devices")
# A display server or compositor at rest is no owner (B2): one of these names, as /proc/PID/comm
# cuts them, on a GPU that others use no more than this, with no more memory than this.
DESKTOP = frozenset(
    {"Xorg", "Xwayland", "gnome-shell", "kwin_x11", "kwin_wayland", "plasmashell", "sddm-greeter"}
)
REST_PERCENT = 10.0
REST_VRAM_MB = 1024.0
_TIMEOUT_S = 3.0  # then the child is killed; the guard itself waits much less


class Nvml(Protocol):
    """gpu.NvmlChild, or a test's own."""

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """One question to gpu_child.py. Raises OSError, ValueError."""
        ...

    def close(self) -> None:
        """Not needed for a while."""
        ...


@dataclass(frozen=True, slots=True)
class Use:
    """Use of one GPU that is not ours, and whether a program makes it that should not be there."""

    percent: float
    vram_mb: float
    foreign: bool


def judge(gpu: dict[str, Any], ours: Collection[int], name_of: Callable[[int], str]) -> Use:
    """One GPU as gpu_child.py tells it."""
    memory: dict[int, float | None] = dict(gpu["processes"])
    shares = None if gpu["shares"] is None else dict(gpu["shares"])
    mine = [pid for pid in memory if pid in ours]
    strangers = [pid for pid in memory if pid not in ours and name_of(pid) not in DESKTOP]
    desktop = [pid for pid in memory if pid not in ours and pid not in strangers]
    percent, vram_mb = float(gpu["percent"]), float(gpu["used_mb"])
    if mine:
        # While we use it, only what is known of single processes tells ours from others'.
        if shares is not None:
            theirs = sum(used for pid, used in shares.items() if pid not in ours)
            if strangers:  # use that no share explains may be theirs, too
                theirs = max(theirs, percent - sum(u for pid, u in shares.items() if pid in ours))
            percent = min(percent, theirs)
        elif not strangers:
            percent = 0.0
        known = [used for pid in mine if (used := memory[pid]) is not None]
        if len(known) == len(mine):
            vram_mb = max(0.0, vram_mb - sum(known))
        elif not strangers:
            vram_mb = 0.0
    restless = percent > REST_PERCENT or any(
        (used := memory[pid]) is None or used > REST_VRAM_MB for pid in desktop
    )
    return Use(percent, vram_mb, bool(strangers) or (bool(desktop) and restless))


class GpuSource:
    """Per GPU: foreign processes, and use above the limits; the worst one counts.

    `expected`: what config.yaml says of a GPU. Where no GPU is to be seen, neither on the bus nor
    through NVML, there is nothing to protect, unless one is expected. A GPU that sleeps is used by
    nobody; asking would wake it.
    """

    name = "gpu"

    def __init__(
        self,
        expected: bool | None,
        nvml: Nvml,
        *,
        ours: Callable[[], Collection[int]],
        pci: Path = PCI_DEVICES,
    ) -> None:
        self._expected, self._nvml, self._ours, self._pci = expected, nvml, ours, pci
        self._none_there = False

    def read(self) -> Reading:
        """Look. Raises NodeError, OSError, ValueError, LookupError, TypeError."""
        shown = nvidia_gpus(self._pci)
        awake = [name for name, (status, _) in shown.items() if status != "suspended"]
        if shown and not awake:
            self._nvml.close()
            return Reading(self.name)
        if shown or not self._none_there:
            before = self._ours()
            gpus = self._ask(shown, awake)
            if len(gpus) < len(awake) and gpus:
                raise NodeError(
                    "blind",
                    f"NVML shows {len(gpus)} of the {len(awake)} GPUs that are awake on the bus; "
                    "make `nvidia-smi` show all of them, or take the others off the bus",
                )
            if gpus:  # processes begin and end while we look
                found = self._reading(gpus, {*before, *self._ours()})
                whole = len(awake) == len(shown)  # what sleeps is not asked
                free = sum(gpu["free_mb"] for gpu in gpus) if whole else None
                return replace(found, vram_free_mb=free)
            self._none_there = not shown
        if self._expected or shown:
            raise NodeError(
                "blind",
                "a GPU is expected, and NVML shows none; install NVIDIA's driver with "
                "libnvidia-ml.so.1, or say `gpu: false` in config.yaml if there is none",
            )
        self._nvml.close()
        return Reading(self.name)

    def _ask(self, shown: dict[str, tuple[str, str]], awake: list[str]) -> list[dict[str, Any]]:
        request: dict[str, Any] = {"pci": awake} if len(awake) < len(shown) else {}
        # Who holds NVML keeps every GPU awake that could sleep.
        request["release"] = any(control == "auto" for _, control in shown.values())
        answer = self._nvml.ask(request, _TIMEOUT_S)
        if "error" in answer:
            raise NodeError("blind", f"NVML fails ({answer['error']}); see what `nvidia-smi` says")
        found: list[dict[str, Any]] = [] if "absent" in answer else answer["gpus"]
        return found

    def _reading(self, gpus: list[dict[str, Any]], ours: Collection[int]) -> Reading:
        uses = [judge(gpu, ours, _name_of) for gpu in gpus]
        measures = {
            "gpu_percent": max(use.percent for use in uses),
            "vram_gb": round(max(use.vram_mb for use in uses) / 1024, 3),
        }
        foreign = any(use.foreign for use in uses)
        return Reading(self.name, foreign, "foreign_gpu_process", measures=measures)


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


def _name_of(pid: int) -> str:
    return read_proc(f"{pid}/comm").decode(errors="replace").strip()
