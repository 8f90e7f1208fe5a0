"""The agent: wires guard, link, poller and tasks together, and decides nothing by itself."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from rae_node import __version__, capabilities
from rae_node.clock import Clock
from rae_node.config import NodeConfig, RuntimeConfig
from rae_node.delivery import Delivery
from rae_node.errors import NodeError
from rae_node.execution import Bench, Stop, TaskRun
from rae_node.guard.loop import Guard, Stopped
from rae_node.guard.policy import Decision, Rules, yield_reason
from rae_node.guard.sources.base import Source
from rae_node.guard.sources.pause import PauseSource
from rae_node.isolation import Isolation, at_least
from rae_node.link import Link
from rae_node.log import DecisionLog, EventLog
from rae_node.owner_door import open_door
from rae_node.paths import Layout
from rae_node.poller import Poller, Want
from rae_node.runners.allowlist import AllowList
from rae_node.runners.base import Runner
from rae_node.runners.cli import CliRunner
from rae_node.runners.llm import LlmRunner
from rae_node.runners.python import PythonRunner
from rae_node.settings import Settings
from rae_node.slots import Slots, slot_names
from rae_node.spool import Spool
from rae_protocol.models import (
    Command,
    Heartbeat,
    LeasedTask,
    LeaseRef,
    Registered,
    RegisterRequest,
)
from rae_protocol.node_client import NodeClient

MEMORY_SHARE = 0.75  # of the machine's memory, where the owner sets no mem_soft_mb


@dataclass(frozen=True, slots=True)
class Outfit:
    """What an agent is made of."""

    layout: Layout
    config: NodeConfig
    runtime: RuntimeConfig
    settings: Settings
    client: NodeClient
    clock: Clock
    isolation: Isolation
    machine: capabilities.Machine
    machine_id: str
    allowed: AllowList
    task_folders: Sequence[Path]
    sources: Sequence[Source]
    pause: PauseSource
    log: EventLog


class Agent:
    """A node while it runs. `start`, wait for `done`, `shut_down`."""

    def __init__(self, outfit: Outfit) -> None:
        self.outfit = outfit
        self.done = threading.Event()
        self.exit_code = 0
        self.draining = False
        self._stopping = False
        self._instance = uuid.uuid4().hex
        self.models: list[str] | None = None
        config, runtime, settings = outfit.config, outfit.runtime, outfit.settings
        gpus = capabilities.gpu_slots(config, outfit.machine)
        names = slot_names(config.max_concurrent_cpu, gpus)
        if not names:
            raise NodeError("bad_config", "There is no slot: allow max_concurrent_cpu: 1")
        self.slots = Slots(names)
        self.spool = Spool(outfit.layout.spool, outfit.log)
        self.spool.load()
        self.link = Link(
            outfit.client,
            self.slots,
            self.spool,
            self,
            url=config.rae_endpoint,
            introduce=self._introduction,
            beat=self._beat,
            interval_s=config.heartbeat_interval_sec,
            keep_trying=runtime.execution.retry_on_disconnect,
            clock=outfit.clock,
            settings=settings,
            log=outfit.log,
        )
        self.delivery = Delivery(
            outfit.client,
            self.spool,
            settings,
            outfit.log,
            keep_trying=runtime.execution.retry_on_disconnect,
            call=self.link.call,
        )
        self.poller = Poller(
            outfit.client,
            self.link,
            self.slots,
            want=self._want,
            on_task=self._take,
            on_commands=self.commanded,
            interval_s=runtime.execution.poll_interval_sec,
            clock=outfit.clock,
            settings=settings,
            log=outfit.log,
        )
        self.guard = Guard(
            Rules(
                runtime.automation.enabled,
                runtime.safety.detect_active_user,
                {"cpu_percent": runtime.safety.max_cpu_percent},
            ),
            outfit.sources,
            runtime.safety.cooldown_minutes * 60,
            clock=outfit.clock,
            settings=settings,
            log=outfit.log,
            decisions=DecisionLog(outfit.layout.logs),
            busy=lambda: len(self.slots) > 0,
            stop_all=self._stop_for_guard,
            deadlines=self._enforce_deadlines,
            changed=self._decision_changed,
        )
        self._runners: dict[str, Runner] = {
            runner.kind: runner
            for runner in (
                CliRunner(outfit.allowed),
                PythonRunner(outfit.task_folders, outfit.layout.workdir),
                LlmRunner(config.ollama_url, config.llm_models),
            )
        }
        self._bench = Bench(
            client=outfit.client,
            link=self.link,
            spool=self.spool,
            delivery=self.delivery,
            isolation=outfit.isolation,
            runners=self._runners,
            devices=self._devices,
            memory_mb=config.mem_soft_mb or (outfit.machine.memory_mb or 0) * MEMORY_SHARE or None,
            config=config,
            runtime=runtime,
            settings=settings,
            layout=outfit.layout,
            clock=outfit.clock,
            log=outfit.log,
            handed_back=lambda _: self.guard.begin_cooldown(),
            ended=self._ended,
        )
        self._door = open_door(self)

    def start(self) -> None:
        """Start every thread; the first decision comes before the first registration."""
        self._door.start()
        self.guard.start()
        self.guard.ready.wait(10.0)
        self.link.start()
        self.poller.start()
        self.delivery.start()

    def shut_down(self) -> None:
        """Kill the work, hand it back, say goodbye; bounded, for the owner may be waiting."""
        self._stopping = True
        settings, clock = self.outfit.settings, self.outfit.clock
        limit = clock.boot() + settings.shutdown_sec
        self.poller.stop()
        self._stop_runs("shutdown", "the agent ends", clock.boot())
        self.slots.wait_empty(settings.shutdown_sec)
        self.link.stop()
        if self.link.ready.is_set() and self.exit_code == 0:
            goodbye = threading.Thread(target=self._goodbye, daemon=True)
            goodbye.start()
            goodbye.join(max(0.2, limit - clock.boot()))
        self.guard.stop()
        self.delivery.stop()
        self._door.close()
        self.outfit.log.info("agent_stopped", exit_code=self.exit_code)

    # News from control (link.Ears)

    def registered(self, answer: Registered) -> None:
        """A session has begun: whether to drain comes with it, and the spool may go."""
        self.draining = any(item.command == "drain" for item in answer.commands)
        self.delivery.wake()
        self.poller.wake()

    def renewed(self, lease_ids: frozenset[str], sent_at: float) -> None:
        """Deadlines count from the question, not from the answer."""
        for run in self.runs():
            if run.lease.lease_id in lease_ids:
                run.extend(sent_at + run.task.lease_ttl_s - self.link.lease_margin_s)
        if len(self.spool):
            self.delivery.wake()

    def commanded(self, commands: Sequence[Command]) -> None:
        """Cancel one lease; drain or resume the node."""
        now = self.outfit.clock.boot()
        for command in commands:
            if command.command == "cancel":
                runs = [
                    run
                    for run in self.runs()
                    if run.lease.lease_id == command.lease_id
                    or (command.lease_id is None and run.task.task_id == command.task_id)
                ]
                if runs:
                    detail = command.reason or "cancelled"
                    threading.Thread(
                        target=self._stop_runs, args=("cancelled", detail, now, runs), daemon=True
                    ).start()
            else:
                self.draining = command.command == "drain"
                self.outfit.log.info("ordered", order=command.command, reason=command.reason)
        if commands:
            self.poller.wake()

    def disowned(self, why: str) -> None:
        """No lease counts any more."""
        self.outfit.log.warning("all_work_dropped", why=why)
        self._stop_runs("stale", why, self.outfit.clock.boot())

    def leave(self, why: str) -> None:
        """End with exit code 1, after everything is dead."""
        if self.done.is_set():
            return
        self.outfit.log.error("agent_leaves", why=why)
        self.exit_code = 1
        self._stop_runs("stale", why, self.outfit.clock.boot())
        self.done.set()

    # The guard

    def _stop_for_guard(self, decision: Decision, decided_at: float) -> Stopped:
        if not len(self.slots):
            return Stopped()
        return self._stop_runs(yield_reason(decision), ", ".join(decision.reasons), decided_at)

    def _stop_runs(
        self, reason: str, detail: str, decided_at: float, runs: list[TaskRun] | None = None
    ) -> Stopped:
        """End work and come back when nothing of it lives."""
        every = self.runs() if runs is None else runs
        count = sum([run.stop(Stop(reason, detail, decided_at)) for run in every])
        limit = decided_at + self.outfit.settings.kill_confirm_sec
        alive = [run for run in every if run.phase != "delivering" or run.alive()]
        for run in alive:
            if not run.wait_quiet(limit - self.outfit.clock.boot()):
                run.kill_hard()
        return Stopped(count, (self.outfit.clock.boot() - decided_at) * 1000)

    def _enforce_deadlines(self) -> float:
        """The supervisors keep the deadlines; here too, should one of them be stopped."""
        now = self.outfit.clock.boot()
        grace = self.outfit.settings.kill_confirm_sec
        rests = [self.outfit.settings.guard_idle_sec]
        for run in self.runs():
            if not run.alive():
                continue
            rest = run.deadline + grace - now
            if rest <= 0:
                self._stop_runs("deadline", "no heartbeat was answered in time", now, [run])
            else:
                rests.append(rest)
        return min(rests)

    def _decision_changed(self) -> None:
        self.link.beat_now()
        self.poller.wake()

    # Tasks

    def _want(self) -> Want | None:
        free = self.slots.free()
        if self.may_take() and free:
            return free
        return () if len(self.slots) or (self.draining and self.guard.decision.safe) else None

    def may_take(self) -> bool:
        """Whether new work may begin now."""
        return (
            self.guard.decision.may_poll
            and not self.draining
            and not self._stopping
            and self.strong_enough()
        )

    def strong_enough(self) -> bool:
        """Whether the isolation reaches what the owner asks for."""
        return at_least(self.outfit.isolation.level, self.outfit.config.min_isolation)

    def _take(self, task: LeasedTask, epoch: int) -> None:
        run = TaskRun(task, self._bench)
        problem, reason = None, "guard"
        if task.incarnation != self.link.incarnation:
            problem = "epoch"
        elif not self.may_take():
            reason = "drain" if self.draining else yield_reason(self.guard.decision)
            reason = "shutdown" if self._stopping else reason
            problem = "the node does not take work now"
        else:
            problem = self.slots.occupy(run, epoch)
        if problem == "epoch":
            self.outfit.log.warning(
                "lease_dropped", task_id=task.task_id, why="of an earlier session"
            )
            return
        if problem is not None:
            detail = f"slot {task.slot} is not free" if problem == "slot" else problem
            threading.Thread(
                target=run.hand_back_unstarted, args=(reason, detail), daemon=True
            ).start()
            return
        # The guard may have changed its mind between the look and the occupation.
        decision = self.guard.decision
        if not decision.safe:
            now = self.outfit.clock.boot()
            run.stop(Stop(yield_reason(decision), ", ".join(decision.reasons), now))
        threading.Thread(target=run.run, name=f"task-{task.slot}", daemon=True).start()
        self.guard.wake()

    def _ended(self, run: TaskRun) -> None:
        self.slots.release(run)
        self.poller.wake()

    def runs(self) -> list[TaskRun]:
        """Every task that holds a slot."""
        return [item for item in self.slots.occupants() if isinstance(item, TaskRun)]

    def _devices(self, slot: str) -> Sequence[str]:
        if not slot.startswith("gpu"):
            return ()
        number = int(slot[3:])
        gpus = self.outfit.machine.gpus or ()
        index = number % len(gpus) if gpus else number
        uuid_ = gpus[index].uuid if gpus else None
        return (uuid_ or str(index),)

    # What is told

    def _introduction(self, unfinished: list[LeaseRef]) -> RegisterRequest:
        outfit = self.outfit
        self.models = capabilities.ask_ollama(outfit.config, 2.0)
        return RegisterRequest(
            node_id=outfit.config.node_id,
            capabilities=capabilities.describe(
                outfit.config,
                outfit.runtime,
                outfit.machine,
                disk=outfit.layout.workdir,
                models=self.models,
            ),
            ack=True,
            instance=self._instance,
            machine=outfit.machine_id,
            version=__version__,
            trusted=outfit.config.trusted,
            slots=list(self.slots.names),
            isolation=outfit.isolation.level,
            availability=self.guard.decision.availability,
            unfinished=unfinished,
        )

    def _beat(self, leases: list[LeaseRef]) -> Heartbeat:
        return Heartbeat(
            node_id=self.outfit.config.node_id,
            leases=leases,
            availability=self.guard.decision.availability,
            reasons=self.reasons(),
            clock_offset_s=self.outfit.client.clock_offset_s,
            disk_free_mb=capabilities.disk_free_mb(self.outfit.layout.workdir),
        )

    def reasons(self) -> list[str]:
        """Why the node does not work now, as codes."""
        reasons = list(self.guard.decision.reasons)
        if not self.strong_enough():
            reasons.append("isolation_too_weak")
        return reasons[:32]

    def _goodbye(self) -> None:
        try:
            self.outfit.client.goodbye("shutdown")
        except Exception as error:  # leaving anyway; control finds out by itself
            self.outfit.log.info("goodbye_not_heard", error=str(error))
