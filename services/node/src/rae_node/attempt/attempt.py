"""One task on this node: ack, prepare, run, conclude. A thread of its own sees it through."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from rae_node.attempt.inputs import Inputs
from rae_node.attempt.log_tail import LogTail
from rae_node.attempt.outcome import (
    artifacts_of,
    conclude,
    limits_of,
    result_body,
    sendable,
    time_limit,
    unknown_end,
)
from rae_node.context import AgentContext
from rae_node.errors import (
    Dropped,
    HandBack,
    TaskFailure,
    Verdict,
    is_node_trouble,
    verdict,
)
from rae_node.host.moments import now_on
from rae_node.isolation.base import Spec
from rae_node.isolation.bubblewrap import gpu_devices
from rae_node.isolation.supervisor_client import Handle, Outcome
from rae_node.runners.base import Plan, Runner, environment
from rae_node.runners.capabilities import slot_devices
from rae_node.session.delivery import Delivery
from rae_node.session.session import Link
from rae_node.session.spool import Spool
from rae_node.workspace import recovery
from rae_node.workspace.workspace import Workspace
from rae_protocol.abort import Aborted, Aborter
from rae_protocol.errors import RaeError, Unreachable
from rae_protocol.models import LeasedTask, LeaseRef

# C6's words for our phases; docs/architecture.md has them beside control's states.
PHASES = {"preparing": "PREP", "running": "RUNNING", "delivering": "UPLOADING"}
COOLING = frozenset({"owner", "guard", "paused", "infrastructure", "no_gpu"})


@dataclass(frozen=True, slots=True)
class Bench:
    """`cool()`: take no work for a while; `free_models()`: no model holds memory any more;
    `ended(run)`: frees the slot."""

    context: AgentContext
    link: Link
    spool: Spool
    delivery: Delivery
    runners: Mapping[str, Runner]
    cool: Callable[[], None]
    free_models: Callable[[], None]
    ended: Callable[[TaskRun], None]


@dataclass(frozen=True, slots=True)
class Stop:
    """Why work must end; `reason` is a yield's, or `stale` (no report). Decided at a boot time."""

    reason: str
    detail: str
    decided_at: float


class TaskRun:
    """A leased task from its arrival to the end of its delivery."""

    def __init__(self, task: LeasedTask, bench: Bench) -> None:
        self.task, self.slot = task, task.slot
        self.lease = LeaseRef(task_id=task.task_id, attempt=task.attempt, lease_id=task.lease_id)
        self.phase = "acking"
        self.ending = "dropped"  # or the result's status, or the yield's reason
        self.stopped_ms: float | None = None
        self._bench, self._context = bench, bench.context
        self._client, self._clock = bench.context.client, bench.context.clock
        self._settings, self._log = bench.context.settings, bench.context.log
        self.deadline = self._clock.boot() + task.lease_ttl_s
        self._lock = threading.Lock()
        self._stop: Stop | None = None
        self._calls = Aborter()
        self._handle: Handle | None = None
        self._log_tail = LogTail(partial(self._client.log, self.lease), self._tell)

    # Called by other threads

    def stop(self, stop: Stop) -> bool:
        """Ask for the end; returns at once. False when it was asked before, or is long over."""
        with self._lock:
            if self._stop is not None or self.phase == "delivering":
                return False
            self._stop = stop
            self._calls.abort()
            if self._handle is not None:
                self._handle.kill()
            return True

    def wait_quiet(self, timeout_s: float) -> bool:
        """Until no process of it lives, at most so long; whether that is so."""
        handle = self._handle
        quiet = handle is None or handle.gone.wait(max(0.0, timeout_s))
        if quiet:
            self._mark_quiet()
        return quiet

    def kill_hard(self) -> None:
        """The second way: kill the whole tree from here."""
        if self._handle is not None and self.alive():
            self._log.warning("supervisor_did_not_confirm", task_id=self.task.task_id)
            self._handle.kill_hard()
        self._mark_quiet()

    def extend(self, deadline: float) -> None:
        """The lease was renewed."""
        with self._lock:
            if deadline > self.deadline or self.phase == "acking":
                self.deadline = deadline
                if self._handle is not None:
                    self._handle.extend(deadline)

    def alive(self) -> bool:
        """Whether processes of it may live."""
        return self._handle is not None and not self._handle.gone.is_set()

    # Its own thread

    def run(self) -> None:
        """See the task through; never raises."""
        task_id = self.task.task_id
        try:
            self._put("result", self._work())
        except Dropped as reason:
            self._log.warning("lease_dropped", task_id=task_id, why=reason.message)
        except HandBack as reason:
            self._hand_back(reason.rc, reason.message)
        except Exception as error:  # the thread's one catch: the disk is full, or we are wrong
            self._log.error("task_broke", task_id=task_id, error=repr(error))
            self._broke(error)
        finally:
            self._bench.ended(self)

    def hand_back_unstarted(self, reason: str, detail: str) -> None:
        """Give back a task that was never acked."""
        task_id = self.task.task_id
        self._log.info("task_not_taken", task_id=task_id, reason=reason, detail=detail)
        self._put("yield", {"reason": reason, "detail": detail[:500]})

    def _broke(self, error: Exception) -> None:
        """Whom it is charged to. Nothing lives any more."""
        text, stop = f"{type(error).__name__}: {error}", self._stop
        if is_node_trouble(error) or not self._ran():
            self._hand_back("infrastructure", text)
        elif stop is None:
            self._bench.spool.discard_staging(self.lease)
            lost = TaskFailure("E_LOST", f"The program's outcome is unknown: {text}")
            self._put("result", result_body(self.lease, "failed", error=lost))
        elif stop.reason != "stale":
            self._hand_back(stop.reason, stop.detail)

    def _ran(self) -> bool:
        """Whether its program may have run."""
        return self._handle is not None and self._handle.started

    def _work(self) -> dict[str, Any]:
        self._ack()
        task = self.task
        boxed, workdir = self._context.isolation.level != "process", self._context.layout.workdir
        workspace = Workspace.create(workdir, task.task_id, task.attempt, boxed=boxed)
        self._enter("preparing", workspace)
        ended: str | None = None
        try:
            runner = self._bench.runners.get(task.kind)
            if runner is None:
                text = f"This node runs no tasks of kind '{task.kind}'; choose cli, python or llm"
                raise TaskFailure("E_INVALID", text)
            plan = runner.plan(task, workspace)
            Inputs(
                self._context, self._bench.link, self.lease, self._calls, self._check_stop,
                task.lease_ttl_s, time_limit(task, self._context.runtime),
            ).fetch(task.inputs, workspace)  # fmt: skip
            body = self._supervised(plan, workspace)
            ended = "DONE" if body["status"] == "succeeded" else "FAILED"
            return body
        except TaskFailure as failure:
            ended = "FAILED"
            self._bench.spool.discard_staging(self.lease)
            return result_body(self.lease, "failed", error=failure)
        finally:
            self._close(workspace, ended)

    def _enter(self, phase: str, workspace: Workspace) -> None:
        """Begin a phase, and note it where it is found after a crash."""
        self.phase = phase
        try:
            recovery.write_state(workspace.path, self._state(PHASES[phase]))
        except OSError as error:  # it only informs: no reason to give up the work
            self._log.info("state_not_written", task_id=self.task.task_id, error=str(error))

    def _state(self, state: str, keep_s: float = 0.0) -> recovery.State:
        now, lease = now_on(self._clock), self.lease.model_dump()
        return recovery.State(**lease, state=state, at=now.wall, keep_s=keep_s, boot=now.boot,
                              boot_id=now.boot_id)  # fmt: skip

    def _call(self, action: Callable[[], None]) -> None:
        """Ask control. Raises HandBack or Dropped as soon as the work is stopped."""
        try:
            self._calls.run(lambda: self._bench.link.call(action))
        except Aborted:
            self._raise_stop()
            raise

    def _ack(self) -> None:
        sent = self._clock.boot()
        try:
            self._call(lambda: self._client.ack(self.lease))
        except RaeError as error:
            if verdict(error) is Verdict.STALE:
                self._confirm_quiet()
            if verdict(error) in {Verdict.STALE, Verdict.REFUSED}:
                raise Dropped(f"ack: {error.rc}") from error
            # Control may have taken the ack: only a hand-back makes that certain.
            raise HandBack("deadline", f"the ack was not answered ({error.rc})") from error
        self.extend(sent + self.task.lease_ttl_s - self._bench.link.lease_margin_s)
        task_id, kind = self.task.task_id, self.task.kind
        self._log.info("task_started", task_id=task_id, slot=self.slot, kind=kind)

    def _confirm_quiet(self) -> None:
        """Control waits for this word about a lease that it ended before the ack."""
        why = "the lease was over before its ack; nothing was started"
        try:
            self._call(lambda: self._client.yield_task(self.lease, "cancelled", why, None))
        except RaeError as error:
            self._log.info("quiet_not_confirmed", task_id=self.task.task_id, rc=error.rc)

    def _supervised(self, plan: Plan, workspace: Workspace) -> dict[str, Any]:
        limit = time_limit(self.task, self._context.runtime, plan)
        handle = self._start(plan, workspace, limit[0])
        workspace = replace(workspace, opener=handle.open)
        self._follow(handle, workspace)
        outcome = handle.outcome
        self._check_stop(outcome)
        if outcome is None:
            raise unknown_end(late=handle.ended_at_deadline(self._clock.boot()), ran=self._ran())
        if outcome.cause == "deadline":
            raise HandBack("deadline", "no heartbeat was answered in time")
        if outcome.cause in {"failed", "killed", "short"}:
            # What a task may have brought about is no mark against its node.
            reason = "guard" if outcome.cause == "short" else "infrastructure"
            raise HandBack(reason, outcome.problem or "the supervisor was ordered to end")
        self._enter("delivering", workspace)
        value, failure = conclude(outcome, plan, workspace, limit)
        if failure is not None:
            return result_body(self.lease, "failed", value, failure, outcome)
        staging = self._bench.spool.staging(self.lease)
        artifacts = artifacts_of(self.task, workspace, staging)
        return result_body(self.lease, "succeeded", value, None, outcome, artifacts)

    def _start(self, plan: Plan, workspace: Workspace, timeout_s: float) -> Handle:
        devices = slot_devices(self._context.machine, self.slot)
        seen = workspace.path if plan.trusted else workspace.seen
        with self._lock:
            self._raise_stop()
            spec = Spec(
                lease_id=self.lease.lease_id,
                argv=plan.argv,
                env=environment(self.task, seen, devices),
                cwd=workspace.work,
                workspace=workspace.path,
                log_dir=workspace.logs,
                deadline=self.deadline,
                limits=limits_of(self._context, plan, timeout_s, gpu=bool(devices)),
                progress=plan.result == "note",
                trusted=plan.trusted,
                shown=plan.shown,
                devices=gpu_devices(devices),
                identity=plan.identity,
            )
            self._handle = self._context.isolation.start(spec)
            self._handle.extend(self.deadline)
            self._enter("running", workspace)
            return self._handle

    def _follow(self, handle: Handle, workspace: Workspace) -> None:
        shown: tuple[float, str] | None = None
        while not handle.finished.wait(self._settings.log_tail_sec):
            self._send_log(workspace)
            if handle.progress is not None and handle.progress != shown:
                shown = pct, note = handle.progress
                self._tell(lambda: self._client.progress(self.lease, pct, note))  # noqa: B023 - called within this round
        handle.gone.wait()
        if self._stop is None:
            self._send_log(workspace)

    def _send_log(self, workspace: Workspace) -> None:
        handle = workspace.open_log("exec.log")
        if handle is None:
            return
        with handle:
            self._log_tail.follow(handle)

    def _tell(self, action: Callable[[], None]) -> bool:
        """A report that may be lost. A stale lease ends the work."""
        if not self._bench.link.ready.is_set():
            return False
        try:
            self._calls.run(lambda: self._bench.link.call(action))
        except (Aborted, RuntimeError):  # it was stopped; or no more threads
            return False
        except RaeError as error:
            if verdict(error) is Verdict.STALE:
                self.stop(Stop("stale", error.rc, self._clock.boot()))
            elif not isinstance(error, Unreachable):
                self._log.info("report_not_taken", task_id=self.task.task_id, rc=error.rc)
            return False
        except ValueError as error:  # what the task said cannot be sent (half a surrogate pair)
            self._log.info("report_not_sent", task_id=self.task.task_id, error=str(error))
            return False
        return True

    def _check_stop(self, outcome: Outcome | None = None) -> None:
        """Raises HandBack or Dropped when the work was stopped before it ended by itself."""
        with self._lock:
            ended_by_itself = outcome is not None and outcome.cause != "killed"
            if self._stop is not None and not (ended_by_itself and self._stop.reason != "stale"):
                self._raise_stop()
        if outcome is None and self._clock.boot() >= self.deadline:
            raise HandBack("deadline", "the lease ran out before the work began")

    def _raise_stop(self) -> None:
        if self._stop is not None:
            self._mark_quiet()
            if self._stop.reason == "stale":
                raise Dropped(self._stop.detail)
            raise HandBack(self._stop.reason, self._stop.detail)

    def _mark_quiet(self) -> None:
        if self._stop is not None and self.stopped_ms is None:
            if self.task.kind == "llm" and self._stop.reason in COOLING:
                self._bench.free_models()  # measured with it
            self.stopped_ms = (self._clock.boot() - self._stop.decided_at) * 1000

    def _close(self, workspace: Workspace, ended: str | None) -> None:
        """Wipe, or put aside what `ended` and stays for a while. A yield always wipes.

        Whatever went wrong before: nothing may live when the task is handed back.
        """
        handle = self._handle
        if handle is not None and self.alive():
            handle.kill()
            if not self.wait_quiet(self._settings.kill_confirm_sec):
                self.kill_hard()
            handle.gone.wait()
        keep_s = self._context.config.keep_s(succeeded=ended == "DONE") if ended else 0.0
        try:
            if ended and keep_s > 0:
                recovery.keep(workspace.path, self._state(ended, keep_s))
        except OSError as error:
            self._log.warning("workspace_not_kept", task_id=self.task.task_id, error=str(error))
        try:
            if handle is None or not handle.wipe(self._settings.wipe_confirm_sec):
                self._context.isolation.wipe(workspace.path)
        except OSError as error:
            self._log.error("workspace_not_wiped", task_id=self.task.task_id, error=str(error))

    def _hand_back(self, reason: str, detail: str) -> None:
        body: dict[str, Any] = {"reason": reason, "detail": sendable(detail[:500])}
        if self.stopped_ms is not None:
            body["stopped_ms"] = round(self.stopped_ms, 1)
        if reason in COOLING:
            self._bench.cool()
        self._bench.spool.discard_staging(self.lease)
        self._put("yield", body)

    def _put(self, kind: Literal["result", "yield"], body: dict[str, Any]) -> None:
        self.phase = "delivering"
        task_id, self.ending = self.task.task_id, str(body.get("status") or body["reason"])
        attrs = {key: body[key] for key in ("status", "reason", "stopped_ms") if key in body}
        self._log.info("task_ended", task_id=task_id, kind=kind, **attrs)
        try:
            self._bench.spool.put(kind, self.lease, json.loads(json.dumps(body)))
        except OSError as error:
            # Not reported, the lease runs out at control and the task runs elsewhere.
            self._log.error("spool_not_written", task_id=task_id, error=str(error))
            return
        self._bench.delivery.deliver(self.lease.lease_id)
