"""A desktop's GPU for tests: programs on it, a clock, and what nvml_child.py would say of them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from typing import Any

from rae_node.guard.gpu_rules import Program, Resting
from rae_node.guard.policy import Reading
from rae_node.guard.sources.gpu import GpuSource

Use = tuple[float, float, float]  # percent of processors, encoder, decoder
REST: Use = (0, 0, 0)


@dataclass
class OnGpu:
    """A program on the GPU.

    `lists`: as nvidia-smi writes it, "G", "C" or "C+G"; "" for one that NVML does not list.
    `shown`: whether NVML gives its shares.
    """

    program: Program
    lists: str
    mb: float | None
    use: Use | Callable[[float], Use]
    shown: bool = True


@dataclass
class Desk:
    """Everything on one GPU of 16 GiB. It is its own NVML."""

    now: float = 1000.0
    programs: dict[int, OnGpu] = field(default_factory=dict)
    ours: set[int] = field(default_factory=set)
    streams: list[tuple[int, str]] = field(default_factory=list)
    unknown: dict[str, str] = field(default_factory=dict)
    shares: bool = True

    def open(
        self,
        name: str,
        lists: str = "G",
        mb: float | None = 200,
        use: Use | Callable[[float], Use] = REST,
        *,
        ours: bool = False,
        shown: bool = True,
    ) -> int:
        """Start a program; returns its pid."""
        pid = 100 + len(self.programs)
        known = Program(pid, name[:15], name, 0 if ours else 1000)
        self.programs[pid] = OnGpu(known, lists, mb, use, shown)
        if ours:
            self.ours.add(pid)
        return pid

    def source(self, pci: Path, resting: Resting | None = None) -> GpuSource:
        """The real source before it."""
        return GpuSource(
            True,
            self,
            ours=lambda: frozenset(self.ours),
            resting=lambda: resting or Resting(),
            program=lambda pid: one.program if (one := self.programs.get(pid)) else None,
            pci=pci,
            monotonic=lambda: self.now,
        )

    def ask(self, request: dict[str, Any], timeout_s: float) -> dict[str, Any]:
        """Answer as nvml_child.py does."""
        back_s = request["back_s"]
        used = {pid: self._mean(one, back_s) for pid, one in self.programs.items()}
        whole = [min(100.0, sum(one[engine] for one in used.values())) for engine in range(3)]
        held = 100 + sum(one.mb or 0 for one in self.programs.values() if one.lists)
        now = min(100.0, sum(self._mean(one, 0)[0] for one in self.programs.values()))
        answer = {
            "now": {"sm": now},
            "recent": dict(zip(("sm", "encoder", "decoder"), whole, strict=True)),
            "used_mb": held,
            "free_mb": 16384 - held,
            "clients": [
                [pid, one.mb, "G" in one.lists] for pid, one in self.programs.items() if one.lists
            ],
            "shares": [
                [pid, *used[pid]]
                for pid, one in self.programs.items()
                if one.shown and any(used[pid])
            ]
            if self.shares
            else None,
            "streams": [list(one) for one in self.streams],
            "unknown": self.unknown,
        }
        return {"gpus": [answer]}

    def close(self) -> None:
        pass

    def _mean(self, one: OnGpu, back_s: float) -> Use:
        """Its use since then, in samples of half a second as NVML takes them."""
        if not callable(one.use):
            return one.use
        samples = [one.use(self.now - n / 2) for n in range(max(1, round(2 * back_s)))]
        sm, encoder, decoder = map(fmean, zip(*samples, strict=True))
        return sm, encoder, decoder

    def looks(self, source: GpuSource, minutes: float, every_s: float) -> Iterator[Reading]:
        """What the source sees over so many minutes of this desk's clock."""
        end = self.now + minutes * 60
        while self.now < end:
            self.now += every_s
            yield source.read()
