"""The agent: wires guard, link, poller and tasks together, and decides nothing by itself."""

from __future__ import annotations

import threading
import uuid
from collections.abc import Sequence
from typing import Any

from rae_node import __version__
from rae_node.agent.admission import Admission
from rae_node.agent.doors import Doors
from rae_node.agent.paced import Paced
from rae_node.agent.sleep_inhibitor import Awake
from rae_node.attempt.attempt import Bench, Stop, TaskRun
from rae_node.context import AgentContext
from rae_node.errors import NodeError
from rae_node.guard.loop import Guard, Stopped
from rae_node.guard.policy import (
    Decision,
    yield_reason,
)
from rae_node.guard.sources.owner_socket import OwnerSocketSource
from rae_node.runners import capabilities
from rae_node.runners.base import Runner
from rae_node.runners.cli import CliRunner
from rae_node.runners.llm import LlmRunner, runner_uids
from rae_node.runners.ollama_service import ModelRunner
from rae_node.runners.python import PythonRunner
from rae_node.session.delivery import Delivery
from rae_node.session.poller import Poller, Want
from rae_node.session.session import Link
from rae_node.session.slots import Slots, slot_names
from rae_node.session.spool import Spool
from rae_node.telemetry.metrics import Tally
from rae_node.workspace.recovery import Sweeper
from rae_protocol.models import Command, Heartbeat, LeasedTask, LeaseRef, RegisterRequest, Wanted

_LOOK_S = 4.0  # each source may take its time once
_BEAT_S = 1.0  # between heartbeats that tell news: any user can pause and pause again


class Agent:
    """A node while it runs. `start`, wait for `done`, `shut_down`."""

    def __init__(self, context: AgentContext, doors: Doors) -> None:
        self.context = context
        self.done = threading.Event()
        self.exit_code = 0
        self.draining = False
        self.tally = Tally()
        self.stopping = False
        self._instance = uuid.uuid4().hex
        self._clock, self._log = context.clock, context.log
        self.models: list[str] | None = None
        config = context.config
        gpus = capabilities.gpu_slots(config, context.machine)
        names = slot_names(config.max_concurrent_cpu, gpus)
        if not names:
            raise NodeError(
                "bad_config", "There is no slot; set max_concurrent_cpu: 1 in config.yaml"
            )
        uids = runner_uids(config.ollama_user)
        self._model_runner = ModelRunner(context.log, context.clock, config.ollama_url, uids)
        # At every level of isolation: B5 and the report know of no exception.
        self._awake = Awake(context.log, context.sleep_block)
        self.slots: Slots[TaskRun] = Slots(names, self._awake.follow)
        self.spool = Spool(context.layout.spool, context.log)
        self.spool.load()
        self.admission = Admission(context, self.slots, self.spool, lambda: self.guard.decision)
        self.link = Link(context, self.slots, self.spool, self)
        self._beat = Paced(self.link.beat_now, _BEAT_S, context.clock)
        self.delivery = Delivery(context, self.spool, self.link)
        self.poller = Poller(
            context, self.link, self.slots, want=self._want, on_task=self._take,
            on_commands=self.commanded,
        )  # fmt: skip
        self._door = doors.owner(self)
        self.guard = Guard(
            context,
            busy=lambda: len(self.slots) > 0,
            stop_all=self._stop_for_guard,
            deadlines=self._enforce_deadlines,
            changed=self._decision_changed,
            besides=[OwnerSocketSource(self._door.keep_open)],
        )
        runners: tuple[Runner, ...] = (
            CliRunner(context.allowed),
            PythonRunner(context.task_folders, context.layout.workdir),
            LlmRunner(config.ollama_url, uids, self._roles, self._model_runner.begins),
        )
        self._bench = Bench(
            context, self.link, self.spool, self.delivery,
            {runner.kind: runner for runner in runners}, cool=self.guard.begin_cooldown,
            free_models=self._model_runner.free, ended=self._ended,
        )  # fmt: skip
        self._sweeper = Sweeper(
            context.layout.workdir, context.clock, context.log, context.settings.sweep_sec,
            self.admission.disk_low, config.keep_s, context.isolation.wipe,
        )  # fmt: skip
        self._monitor = doors.monitor(self)

    def start(self) -> None:
        """Start every thread; the first decision comes before the first registration."""
        self._record("agent", text="the agent starts")
        self._door.start()
        self.guard.start()
        self.guard.ready.wait(10.0)
        self.link.start()
        self.poller.start()
        self.delivery.start()
        self._sweeper.start()
        if self._monitor is not None:
            self._monitor.start()

    def look_at_files(self) -> None:
        """Take over what the owner changed. Called about once a second."""
        news = self.context.live.look()
        if self.context.owner.changed():
            self.guard.wake()
        if news == "rejected":
            self._log.warning("config_rejected", problem=self.context.live.problem)
        elif news == "waits":
            self._log.info("config_waits", problem=self.context.live.problem)
        elif news == "changed":
            self._log.info("config_changed")
            self.guard.wake()
            self.poller.wake()
        listed = self.context.allowed.look()
        if listed == "rejected":
            self._log.warning("config_rejected", problem=self.context.allowed.problem)
        elif listed == "changed":
            self._log.info("allowlist_changed", commands=len(self.context.allowed.offered()))
            self.link.introduce_again()

    def shut_down(self) -> None:
        """Kill the work, hand it back, say goodbye; bounded, for the owner may be waiting."""
        self.stopping = True
        limit = self._clock.boot() + self.context.settings.shutdown_sec
        self.poller.stop()
        self._stop_runs("shutdown", "the agent ends")
        self.slots.wait_empty(self.context.settings.shutdown_sec)
        self.link.stop()
        # A goodbye gives every lease to others: never while something of ours may live, or while a
        # result or a yield waits for control, which a later agent delivers under its lease.
        settled = not self._alive() and not len(self.spool)
        if self.link.ready.is_set() and self.exit_code == 0 and settled:
            goodbye = threading.Thread(target=self._goodbye, daemon=True)
            goodbye.start()
            goodbye.join(max(0.2, limit - self._clock.boot()))
        self.guard.stop()
        self.delivery.stop()
        self._sweeper.stop()
        self._door.close()
        if self._monitor is not None:
            self._monitor.close()
        self._record("agent", text="the agent stops")
        self._log.info("agent_stopped", exit_code=self.exit_code)

    # News from control (link.Ears)

    def registered(self, commands: Sequence[Command], wanted: Wanted | None) -> None:
        """A session has begun: whether to drain comes with it, and the spool may go."""
        self.draining = False  # where control is older, a `drain` among the commands says otherwise
        self.commanded(commands, wanted)
        self.delivery.wake()
        self.poller.wake()

    def renewed(self, lease_ids: frozenset[str], sent_at: float) -> None:
        """Deadlines count from the question, not from the answer."""
        for run in self.runs():
            if run.lease.lease_id in lease_ids:
                run.extend(sent_at + run.task.lease_ttl_s - self.link.lease_margin_s)
        if len(self.spool):
            self.delivery.wake()

    def commanded(self, commands: Sequence[Command], wanted: Wanted | None) -> None:
        """Cancel leases; drain or resume the node. `wanted` counts, however the orders came."""
        before = self.draining
        for command in commands:
            if command.command != "cancel":
                self.draining = command.command == "drain"
                continue
            lease_id, task_id = command.lease_id, command.task_id
            runs = [
                run
                for run in self.runs()
                if run.lease.lease_id == lease_id
                or (lease_id is None and run.task.task_id == task_id)
            ]
            if runs:
                stop = ("cancelled", command.reason or "cancelled", self._clock.boot(), runs)
                threading.Thread(target=self._stop_runs, args=stop, daemon=True).start()
        if wanted is not None:
            self.draining = wanted == "drain"
        if self.draining != before:
            self._log.info("ordered", order="drain" if self.draining else "resume")
        if commands or self.draining != before:
            self.poller.wake()

    def disowned(self, why: str) -> None:
        """No lease counts any more."""
        self._log.warning("all_work_dropped", why=why)
        self._stop_runs("stale", why)

    def leave(self, why: str) -> None:
        """End with exit code 1, after everything is dead."""
        if self.done.is_set():
            return
        self._log.error("agent_leaves", why=why)
        self.stopping = True
        self.exit_code = 1
        self._stop_runs("stale", why)
        self.done.set()

    # The guard

    def _stop_for_guard(self, decision: Decision, decided_at: float) -> Stopped:
        stopped = self._stop_runs(yield_reason(decision), ", ".join(decision.reasons), decided_at)
        self._awake.follow(0)  # the owner's machine may sleep, whatever is still to be wiped
        self._model_runner.free()  # where no task had it done
        return stopped

    def _stop_runs(
        self,
        reason: str,
        detail: str,
        decided_at: float | None = None,
        runs: list[TaskRun] | None = None,
    ) -> Stopped:
        """End work and come back when nothing of it lives."""
        began = self._clock.boot() if decided_at is None else decided_at
        every = self.runs() if runs is None else runs
        if not every:
            return Stopped()
        count = sum([run.stop(Stop(reason, detail, began)) for run in every])
        limit = began + self.context.settings.kill_confirm_sec
        for run in every:
            if not run.wait_quiet(limit - self._clock.boot()):
                run.kill_hard()
        return Stopped(count, (self._clock.boot() - began) * 1000)

    def _enforce_deadlines(self) -> float:
        """The supervisors keep the deadlines; here too, should one of them be stopped."""
        self.admission.gpu_rests()
        now = self._clock.boot()
        grace = self.context.settings.kill_confirm_sec
        rests = [self.context.settings.guard_idle_sec]
        for run in self._alive():
            rest = run.deadline + grace - now
            if rest <= 0:
                self._stop_runs("deadline", "no heartbeat was answered in time", now, [run])
            else:
                rests.append(rest)
        return min(rests)

    def _decision_changed(self) -> None:
        self._beat()
        self.poller.wake()

    # Tasks

    def _want(self) -> Want | None:
        free = self.admission.free_slots()
        if self.may_take() and free:
            return free
        return () if len(self.slots) or (self.draining and self.guard.decision.safe) else None

    def _roles(self) -> dict[str, str]:
        max_vram_gb = self.context.runtime.safety.max_vram_gb
        return capabilities.roles_of(self.context.config, max_vram_gb, self.models or [])

    def may_take(self) -> bool:
        """Whether new work may begin now."""
        return not self.draining and not self.stopping and self.admission.open()

    def _take(self, task: LeasedTask, epoch: int) -> None:
        run = TaskRun(task, self._bench)
        problem: str | None = "epoch"
        if task.incarnation == self.link.incarnation:
            # At rest the guard looks every half minute: no work begins on a look that old.
            fresh = bool(self.runs()) or self.guard.look_if_older(0.1, _LOOK_S)
            willing = (
                fresh
                and self.may_take()
                and not (run.slot.startswith("gpu") and self.admission.gpu_rests())
            )
            problem = self.slots.occupy(run, epoch) if willing else "unwilling"
        if problem == "epoch":
            cause = "of an earlier session"
            self._log.warning("lease_dropped", task_id=task.task_id, why=cause)
        elif problem is not None:
            why = "guard", f"slot {task.slot} is not free"
            if problem == "unwilling":
                why = self._refusal(), "the node does not take work now"
            threading.Thread(target=run.hand_back_unstarted, args=why, daemon=True).start()
        else:
            # The node may have changed its mind between the look and the occupation.
            if self.stopping or not self.guard.decision.safe:
                detail = ", ".join(self.guard.decision.reasons) or "the agent ends"
                run.stop(Stop(self._refusal(), detail, self._clock.boot()))
            try:
                threading.Thread(target=run.run, name=f"task-{task.slot}", daemon=True).start()
            except RuntimeError:  # no more threads: without one nothing would free the slot
                self.slots.release(run)
                raise
            self._record("task_begins", task_id=task.task_id, kind=task.kind, slot=task.slot)
            self.guard.wake()

    def _record(self, event: str, **facts: Any) -> None:
        self.context.journal.try_write(self._clock.wall(), event, **facts)

    def _refusal(self) -> str:
        """The word a task is handed back with that is not wanted now."""
        if self.stopping:
            return "shutdown"
        return "drain" if self.draining else yield_reason(self.guard.decision)

    def _ended(self, run: TaskRun) -> None:
        self.tally.ended(run.ending, run.stopped_ms)
        self._record("task_ends", task_id=run.task.task_id, ending=run.ending)
        self.slots.release(run)
        self.poller.wake()

    def runs(self) -> list[TaskRun]:
        """Every task that holds a slot."""
        return self.slots.occupants()

    def _alive(self) -> list[TaskRun]:
        return [run for run in self.runs() if run.alive()]

    # What is reported

    def introduce(self, unfinished: list[LeaseRef]) -> RegisterRequest:
        """The registration."""
        context = self.context
        self.models = self._model_runner.models()
        return RegisterRequest(
            node_id=context.config.node_id,
            capabilities=capabilities.describe(
                context.config,
                context.runtime,
                context.machine,
                disk=context.layout.workdir,
                models=self.models,
            ).model_copy(
                update=capabilities.programs_of(
                    context.allowed, context.task_folders, context.layout.workdir
                )
            ),
            ack=True,
            instance=self._instance,
            machine=context.machine_id,
            version=__version__,
            trusted=context.config.trusted,
            slots=list(self.slots.names),
            isolation=context.isolation.level,
            availability=self.guard.decision.availability,
            unfinished=unfinished,
        )

    def beat(self, leases: list[LeaseRef]) -> Heartbeat:
        """A heartbeat."""
        known = self.link.incarnation
        older = any(run.task.incarnation != known for run in self._alive())
        return Heartbeat(
            node_id=self.context.config.node_id,
            incarnation=None if older else known,
            leases=leases,
            availability=self.guard.decision.availability,
            reasons=self.admission.reasons(),
            clock_offset_s=self.context.client.clock_offset_s,
            disk_free_mb=capabilities.disk_free_mb(self.context.layout.workdir),
        )

    def _goodbye(self) -> None:
        try:
            self.context.client.goodbye("shutdown")
        except Exception as error:  # leaving anyway; control finds out by itself
            self._log.info("goodbye_not_heard", error=str(error))
