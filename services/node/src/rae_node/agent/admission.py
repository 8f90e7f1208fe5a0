"""Whether a node may begin new work, besides what control and the agent's end say of it."""

from __future__ import annotations

from collections.abc import Callable

from rae_node.attempt.attempt import TaskRun
from rae_node.context import AgentContext
from rae_node.guard.policy import Decision, GpuRun, follow_gpu, gpu_must_rest
from rae_node.isolation.base import at_least
from rae_node.runners import capabilities
from rae_node.session.slots import Slots
from rae_node.session.spool import Spool


class Admission:
    """The guard's decision, isolation, the GPU's rest, room on the disk and in the spool."""

    def __init__(
        self, context: AgentContext, slots: Slots[TaskRun], spool: Spool,
        decision: Callable[[], Decision],
    ) -> None:  # fmt: skip
        self._context, self._slots, self._spool, self._decision = context, slots, spool, decision
        self._gpu_run: GpuRun | None = None

    def open(self) -> bool:
        """Whether new work may begin now."""
        return self._decision().may_poll and self.strong_enough() and not self.shortages()

    def free_slots(self) -> tuple[str, ...]:
        """Slots that a task may have now."""
        rests = self.gpu_rests()
        return tuple(name for name in self._slots.free() if not (rests and name.startswith("gpu")))

    def gpu_rests(self) -> bool:
        """Whether the GPU gets no new task now (B10). Looks at it, too: the guard asks often."""
        config, now = self._context.config, self._context.clock.boot()
        working = any(run.slot.startswith("gpu") for run in self._slots.occupants())
        self._gpu_run = follow_gpu(self._gpu_run, now, working, config.gpu_rest_minutes * 60)
        return gpu_must_rest(self._gpu_run, config.gpu_longest_run_minutes * 60)

    def disk_low(self) -> bool:
        """Whether a task would soon meet a full disk."""
        layout, least = self._context.layout, self._context.settings.disk_low_mb
        free = [capabilities.disk_free_mb(folder) for folder in (layout.workdir, layout.spool)]
        return any(mb is not None and mb < least for mb in free)

    def shortages(self) -> list[str]:
        """Codes of what is short on this machine, which keeps new tasks away."""
        # Results that wait for control; those of more tasks would find no room.
        spool_full = self._spool.size > self._context.settings.spool_max_mb * 1024 * 1024
        return [*(["disk_low"] if self.disk_low() else []), *(["spool_full"] if spool_full else [])]

    def strong_enough(self) -> bool:
        """Whether the isolation reaches what the owner asks for."""
        return at_least(self._context.isolation.level, self._context.config.min_isolation)

    def reasons(self) -> list[str]:
        """Why the node does not work now, as codes."""
        weak = [] if self.strong_enough() else ["isolation_too_weak"]
        rest = ["gpu_rest"] if self.gpu_rests() else []
        return [*self._decision().reasons, *weak, *rest, *self.shortages()][:32]
