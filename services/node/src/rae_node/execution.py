"""One task on this node: ack, prepare, run, conclude. A thread of its own sees it through."""

from __future__ import annotations

import json
import random
import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from rae_node.clock import Clock
from rae_node.config import NodeConfig, RuntimeConfig
from rae_node.delivery import Delivery
from rae_node.errors import Dropped, HandBack, NodeError, TaskFailure
from rae_node.isolation import Handle, Isolation, Limits, Outcome, Spec, rlimits
from rae_node.link import Link
from rae_node.log import EventLog
from rae_node.outcome import artifacts_of, failure_of, time_limit, value_of
from rae_node.paths import Layout
from rae_node.runners.base import Plan, Runner, environment
from rae_node.settings import Settings
from rae_node.spool import Spool
from rae_node.verdicts import Verdict, verdict
from rae_node.workspace import Workspace, fetch_url, inline_bytes
from rae_protocol.errors import RaeError, Unreachable
from rae_protocol.models import LeasedInput, LeasedTask, LeaseRef
from rae_protocol.names import MAX_LOG_BYTES, MAX_LOG_CHUNK, MAX_RESULT_BYTES
from rae_protocol.node_client import NodeClient
from rae_protocol.transport import Backoff

MIB = 1024 * 1024
COOLING = frozenset({"owner", "guard", "paused", "infrastructure", "no_gpu"})


@dataclass(frozen=True, slots=True)
class Bench:
    """What every task needs. `devices(slot)`: the slot's GPUs; `ended(run)`: frees the slot."""

    client: NodeClient
    link: Link
    spool: Spool
    delivery: Delivery
    isolation: Isolation
    runners: Mapping[str, Runner]
    devices: Callable[[str], Sequence[str]]
    memory_mb: float | None
    config: NodeConfig
    runtime: RuntimeConfig
    settings: Settings
    layout: Layout
    clock: Clock
    log: EventLog
    handed_back: Callable[[str], None]
    ended: Callable[[TaskRun], None]


@dataclass(frozen=True, slots=True)
class Stop:
    """Why work must end; `reason` is a yield's, or `stale`: tell nobody. Decided at a boot time."""

    reason: str
    detail: str | None
    decided_at: float


class TaskRun:
    """A leased task from its arrival to the end of its delivery."""

    def __init__(self, task: LeasedTask, bench: Bench) -> None:
        self.task, self.slot = task, task.slot
        self.lease = LeaseRef(task_id=task.task_id, attempt=task.attempt, lease_id=task.lease_id)
        self.deadline = bench.clock.boot() + task.lease_ttl_s
        self.phase = "acking"
        self.stopped_ms: float | None = None
        self._bench = bench
        self._lock = threading.Lock()
        self._stop: Stop | None = None
        self._stop_set = threading.Event()
        self._handle: Handle | None = None
        self._logged = 0

    # Called by other threads

    def stop(self, stop: Stop) -> bool:
        """Ask for the end; returns at once. False when it was asked before, or is long over."""
        with self._lock:
            if self._stop is not None or self.phase == "delivering":
                return False
            self._stop = stop
            self._stop_set.set()
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
        handle = self._handle
        if handle is not None and not handle.gone.is_set():
            self._bench.log.warning("supervisor_did_not_confirm", task_id=self.task.task_id)
            handle.kill_hard()
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
        handle = self._handle
        return handle is not None and not handle.gone.is_set()

    # Its own thread

    def run(self) -> None:
        """See the task through; never raises."""
        task_id = self.task.task_id
        try:
            body = self._work()
            self._put("result", body)
        except Dropped as reason:
            self._bench.log.warning("lease_dropped", task_id=task_id, why=reason.message)
        except HandBack as reason:
            self._hand_back(reason.rc, reason.message)
        except Exception as error:  # the thread's one catch: the disk is full, or we are wrong
            self._bench.log.error("task_broke", task_id=task_id, error=repr(error))
            self._hand_back("infrastructure", f"{type(error).__name__}: {error}")
        finally:
            self._bench.ended(self)

    def hand_back_unstarted(self, reason: str, detail: str) -> None:
        """Give a task back that was never acked; its own thread does it too."""
        self._bench.log.info(
            "task_not_taken", task_id=self.task.task_id, reason=reason, detail=detail
        )
        self._put("yield", {"reason": reason, "detail": detail[:500]})

    def _work(self) -> dict[str, Any]:
        bench, task = self._bench, self.task
        self._ack()
        workspace = Workspace.create(bench.layout.workdir, task.task_id, task.attempt)
        try:
            try:
                runner = bench.runners.get(task.kind)
                if runner is None:
                    raise TaskFailure("E_INVALID", f"This node runs no tasks of kind '{task.kind}'")
                plan = runner.plan(task, workspace)
                self._fetch_inputs(workspace)
                return self._supervised(plan, workspace)
            except TaskFailure as failure:
                bench.spool.discard_staging(self.lease)
                return self._result("failed", error=failure)
        finally:
            self._wipe(workspace)

    def _ack(self) -> None:
        sent = self._bench.clock.boot()
        try:
            self._bench.link.call(lambda: self._bench.client.ack(self.lease))
        except RaeError as error:
            if verdict(error) in {Verdict.STALE, Verdict.REFUSED}:
                raise Dropped(f"ack: {error.rc}") from error
            # Control may have taken the ack: only a hand-back makes that certain.
            raise HandBack("deadline", f"the ack was not answered ({error.rc})") from error
        self.extend(sent + self.task.lease_ttl_s - self._bench.link.lease_margin_s)
        self._bench.log.info(
            "task_started", task_id=self.task.task_id, slot=self.slot, kind=self.task.kind
        )

    def _fetch_inputs(self, workspace: Workspace) -> None:
        self.phase = "preparing"
        for name, given in self.task.inputs.items():
            self._check_stop()
            target = workspace.target(name)
            limit = given.size or int(self._bench.settings.input_max_mb * MIB)
            if given.inline is not None:
                target.write_bytes(inline_bytes(name, given))
            elif given.url is not None:
                hosts = self._bench.config.input_url_hosts
                fetch_url(
                    name, given.url, target, hosts, limit, self._bench.settings.http_timeout_sec
                )
            else:
                self._fetch_from_control(name, given, workspace)
            workspace.settle(name, given)

    def _fetch_from_control(self, name: str, given: LeasedInput, workspace: Workspace) -> None:
        """Try until it is there or the lease is over: control being away is no fault of anybody."""
        backoff = Backoff(
            base_s=self._bench.settings.retry_base_sec, cap_s=self._bench.settings.retry_cap_sec
        )
        rng, tries = random.Random(), 0  # noqa: S311 - jitter, not a secret
        limit = given.size if given.size is not None else MAX_RESULT_BYTES
        while True:
            target = workspace.target(name)
            try:
                return self._bench.link.call(
                    lambda: self._bench.client.fetch_input(self.lease, name, target, limit)  # noqa: B023 - called within this round
                )
            except RaeError as error:
                found = verdict(error)
                if found is Verdict.STALE:
                    raise Dropped(f"input: {error.rc}") from error
                if found is Verdict.REFUSED:
                    raise TaskFailure("E_INPUT", f"Input '{name}': {error.message}") from error
            except ValueError as error:
                if tries >= 3:
                    raise TaskFailure("E_INPUT", f"Input '{name}': {error}") from error
            self._stop_set.wait(backoff.delay(tries, rng) + 0.02)
            tries += 1
            self._check_stop()

    def _supervised(self, plan: Plan, workspace: Workspace) -> dict[str, Any]:
        limit_s, limit_name = time_limit(self.task, self._bench.runtime, plan)
        handle = self._start(plan, workspace, limit_s)
        self._follow(handle, workspace)
        self._check_stop(handle.outcome)
        outcome = handle.outcome
        if outcome is None:
            raise HandBack("infrastructure", "the supervisor ended before its task")
        if outcome.cause == "deadline":
            raise HandBack("deadline", "no heartbeat was answered in time")
        if outcome.cause in {"failed", "killed"}:
            raise HandBack("infrastructure", outcome.problem or "the supervisor was told to end")
        self.phase = "delivering"
        failure = failure_of(outcome, plan, workspace, limit_s, limit_name)
        value = value_of(outcome, plan, workspace)
        if failure is not None:
            return self._result("failed", value, failure, outcome)
        return self._result(
            "succeeded",
            value,
            None,
            outcome,
            artifacts_of(self.task, workspace, self._bench.spool.staging(self.lease)),
        )

    def _start(self, plan: Plan, workspace: Workspace, timeout_s: float) -> Handle:
        bench = self._bench
        max_output = (plan.max_output_mb or bench.settings.input_max_mb) * MIB
        limits = Limits(
            timeout_s=timeout_s,
            max_output_bytes=int(min(max_output, bench.settings.stdio_max_mb * MIB)),
            memory_mb=bench.memory_mb,
            nice=bench.config.cpu_nice,
            io_class=bench.config.io_class,
            io_level=bench.config.io_level,
            rlimits=rlimits(int(max_output)),
        )
        with self._lock:
            self._raise_stop()
            self._handle = bench.isolation.start(
                Spec(
                    lease_id=self.lease.lease_id,
                    argv=plan.argv,
                    env=environment(self.task, workspace, bench.devices(self.slot)),
                    cwd=workspace.work,
                    workspace=workspace.path,
                    log_dir=workspace.logs,
                    deadline=self.deadline,
                    limits=limits,
                    progress=plan.result == "note",
                )
            )
            self.phase = "running"
            return self._handle

    def _follow(self, handle: Handle, workspace: Workspace) -> None:
        shown: tuple[float, str] | None = None
        while not handle.finished.wait(self._bench.settings.log_tail_sec):
            self._send_log(workspace)
            if handle.progress not in {None, shown} and handle.progress is not None:
                shown = pct, note = handle.progress
                self._tell(lambda: self._bench.client.progress(self.lease, pct, note))  # noqa: B023 - called within this round
        handle.gone.wait()
        if self._stop is None:
            self._send_log(workspace)

    def _send_log(self, workspace: Workspace) -> None:
        try:
            with (workspace.logs / "exec.log").open("rb") as handle:
                handle.seek(self._logged)
                while self._logged < MAX_LOG_BYTES and (data := handle.read(MAX_LOG_CHUNK)):
                    offset, piece = self._logged, data
                    if not self._tell(
                        lambda: self._bench.client.log(self.lease, offset, piece)  # noqa: B023 - called within this round
                    ):
                        return
                    self._logged += len(data)
        except FileNotFoundError:
            return

    def _tell(self, action: Callable[[], None]) -> bool:
        """A report that may be lost. A stale lease ends the work."""
        if not self._bench.link.ready.is_set():
            return False
        try:
            self._bench.link.call(action)
        except RaeError as error:
            if verdict(error) is Verdict.STALE:
                self.stop(Stop("stale", error.rc, self._bench.clock.boot()))
            elif not isinstance(error, Unreachable):
                self._bench.log.info("report_not_taken", task_id=self.task.task_id, rc=error.rc)
            return False
        return True

    def _check_stop(self, outcome: Outcome | None = None) -> None:
        """Raises HandBack or Dropped when the work was stopped before it ended by itself."""
        with self._lock:
            ended_by_itself = outcome is not None and outcome.cause != "killed"
            if self._stop is not None and not (ended_by_itself and self._stop.reason != "stale"):
                self._raise_stop()
        if outcome is None and self._bench.clock.boot() >= self.deadline:
            raise HandBack("deadline", "the lease ran out before the work began")

    def _raise_stop(self) -> None:
        if self._stop is not None:
            self._mark_quiet()
            if self._stop.reason == "stale":
                raise Dropped(self._stop.detail or "the lease is over")
            raise HandBack(self._stop.reason, self._stop.detail or self._stop.reason)

    def _mark_quiet(self) -> None:
        if self._stop is not None and self.stopped_ms is None:
            self.stopped_ms = (self._bench.clock.boot() - self._stop.decided_at) * 1000

    def _wipe(self, workspace: Workspace) -> None:
        try:
            handle = self._handle
            if handle is None or not handle.wipe(self._bench.settings.wipe_confirm_sec):
                workspace.wipe()
        except OSError as error:
            self._bench.log.error(
                "workspace_not_wiped", task_id=self.task.task_id, error=str(error)
            )

    def _result(
        self,
        status: str,
        value: Any = None,
        error: NodeError | None = None,
        outcome: Outcome | None = None,
        artifacts: Sequence[dict[str, Any]] = (),
    ) -> dict[str, Any]:
        body: dict[str, Any] = {**self.lease.model_dump(), "status": status, "result": value}
        if error is not None:
            body["error"] = {"code": error.rc, "message": error.message[:4000]}
        if outcome is not None:
            body["duration_s"] = outcome.duration_s
        return {**body, "artifacts": list(artifacts)}

    def _hand_back(self, reason: str, detail: str) -> None:
        body: dict[str, Any] = {"reason": reason, "detail": detail[:500]}
        if self.stopped_ms is not None:
            body["stopped_ms"] = round(self.stopped_ms, 1)
        if reason in COOLING:
            self._bench.handed_back(reason)
        self._bench.spool.discard_staging(self.lease)
        self._put("yield", body)

    def _put(self, kind: Any, body: dict[str, Any]) -> None:
        self.phase = "delivering"
        attrs = {key: body[key] for key in ("status", "reason", "stopped_ms") if key in body}
        self._bench.log.info("task_ended", task_id=self.task.task_id, kind=kind, **attrs)
        try:
            self._bench.spool.put(kind, self.lease, json.loads(json.dumps(body)))
        except OSError as error:
            # Not told, the lease runs out at control and the task runs elsewhere.
            self._bench.log.error("spool_not_written", task_id=self.task.task_id, error=str(error))
            return
        self._bench.delivery.deliver(self.lease.lease_id)
