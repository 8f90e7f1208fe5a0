"""The guard's thread: looks, decides, and stops the work before it says so."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from rae_node.config.files import RuntimeConfig
from rae_node.config.tuning import Settings
from rae_node.guard.causes import Cause, follow, found_in
from rae_node.guard.owner_file import OwnerFile
from rae_node.guard.owner_rules import OwnerRules, tightened
from rae_node.guard.policy import UNSEEN, Decision, Reading, Rules, decide
from rae_node.guard.sources.base import Source, Watched
from rae_protocol.clock import Clock


@dataclass(frozen=True, slots=True)
class Stopped:
    """What a round stopped: tasks, and milliseconds from the decision to the last process gone."""

    count: int = 0
    ms: float = 0.0


def rules_of(runtime: RuntimeConfig, owner: OwnerRules) -> Rules:
    """What runtime.yaml and owner.yaml say, for the policy."""
    safety = runtime.safety
    limits = {
        "cpu_percent": safety.max_cpu_percent,
        "gpu_percent": safety.max_gpu_percent,
        "vram_gb": safety.max_vram_gb,
    }
    return Rules(runtime.automation.enabled, safety.detect_active_user, tightened(limits, owner))


class DecisionLog(Protocol):
    """The agent's log."""

    def info(self, event: str, *, task_id: str | None = None, **attrs: Any) -> None: ...
    def warning(self, event: str, *, task_id: str | None = None, **attrs: Any) -> None: ...
    def error(self, event: str, *, task_id: str | None = None, **attrs: Any) -> None: ...


class DecisionJournal(Protocol):
    """The owner's journal."""

    def write(self, unix: float, event: str, **facts: Any) -> None: ...


class GuardContext(Protocol):
    """What the guard uses of the agent's context."""

    @property
    def sources(self) -> Sequence[Source]: ...
    @property
    def clock(self) -> Clock: ...
    @property
    def settings(self) -> Settings: ...
    @property
    def log(self) -> DecisionLog: ...
    @property
    def wake(self) -> threading.Event: ...
    @property
    def runtime(self) -> RuntimeConfig: ...
    @property
    def owner(self) -> OwnerFile: ...
    @property
    def journal(self) -> DecisionJournal: ...


class Guard:
    """Looks every second while a task runs, else more slowly, and at once when woken.

    `stop_all(decision, decided_at)` ends all work and returns when nothing lives; `deadlines()`
    enforces what is due and returns seconds until the next; `changed()` runs at a new decision.
    """

    def __init__(
        self,
        context: GuardContext,
        *,
        busy: Callable[[], bool],
        stop_all: Callable[[Decision, float], Stopped],
        deadlines: Callable[[], float],
        changed: Callable[[], None],
        besides: Sequence[Source] = (),
    ) -> None:
        """`besides`: sources that the agent itself brings."""
        self.decision = UNSEEN
        self.vram_free_mb: float | None = None
        self.ready = threading.Event()
        self._context = context
        self._answers = threading.Event()
        self._sources = [Watched(source, self._answers) for source in (*context.sources, *besides)]
        self._clock, self._settings, self._log = context.clock, context.settings, context.log
        self._told: Decision | None = None
        self._told_at: deque[float] = deque(maxlen=round(self._settings.decisions_per_minute))
        self._busy, self._stop_all = busy, stop_all
        self._deadlines, self._changed = deadlines, changed
        self._cooldown_until = 0.0
        self._tripped = False
        self._wake = context.wake
        self._rounds = threading.Condition()
        self._asked = self._done = 0
        self._trip: tuple[float, Stopped] = (0.0, Stopped())
        self.causes: tuple[Cause, ...] = ()
        self.looked_at = 0.0  # boot time of the look that found the causes
        self._stopping = False
        self._looked = self._clock.boot()

    def lives(self) -> bool:
        """Whether it still looks; when not, only a fresh agent helps."""
        return self._clock.boot() - self._looked < max(30.0, 3 * self._settings.guard_idle_sec)

    def start(self) -> None:
        """Begin to look."""
        threading.Thread(target=self._run, name="guard", daemon=True).start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping = True
        self._wake.set()

    def wake(self) -> None:
        """Look now."""
        self._wake.set()

    def look_now(self, since: float, timeout_s: float) -> Stopped:
        """Have a whole round done from now on; returns what was stopped since (boot time).

        Raises TimeoutError when the round takes longer.
        """
        with self._rounds:
            self._asked += 1
            wanted = self._asked
            self._wake.set()
            if not self._rounds.wait_for(lambda: self._done >= wanted, timeout_s):
                raise TimeoutError("the guard did not finish a round in time")
            return self._trip[1] if self._trip[0] >= since else Stopped()

    def look_if_older(self, age_s: float, timeout_s: float) -> bool:
        """Have a round done now unless the last one is fresh; whether it is fresh then."""
        if self._clock.boot() - self.looked_at > age_s:
            try:
                self.look_now(self._clock.boot(), timeout_s)
            except TimeoutError:
                return False
        return True

    def begin_cooldown(self) -> None:
        """A task was yielded: wait before asking for more."""
        self._cooldown_until = self._clock.boot() + self._cooldown_s()
        self._wake.set()

    def _extend_cooldown(self) -> None:
        """After a trip the cooldown counts from the last moment of presence, not from the trip.

        Input of a minute ago still counts as presence, and its cooldown has run for a minute. A
        pause is no presence: who ends it wants work.
        """
        ages = [one.holder.age_s for one in self.causes if one.source != "pause"]
        if ages and self._tripped and not self.decision.safe:
            until = self.looked_at - min(ages) + self._cooldown_s()
            self._cooldown_until = max(self._cooldown_until, until)

    def _cooldown_s(self) -> float:
        return self._context.runtime.safety.cooldown_minutes * 60

    def cooldown_left_s(self) -> float:
        """Seconds until polling may go on."""
        return max(0.0, self._cooldown_until - self._clock.boot())

    def _run(self) -> None:
        settings = self._settings
        while not self._stopping:
            tick = settings.guard_busy_sec if self._busy() else settings.guard_idle_sec
            with self._rounds:
                serving = self._asked
            try:
                # Deadlines first: after a suspend or a stop nothing else matters.
                tick = min(tick, self._deadlines())
                self._round()
            except Exception as error:  # the loop's one catch: unknown means present
                self._log.error("guard_round_failed", error=repr(error))
                self._fail_safe()
            with self._rounds:
                self._done, self._looked = serving, self._clock.boot()
                self._rounds.notify_all()
            left = self.cooldown_left_s()
            self._wake.wait(max(0.001, min(tick, left + 0.001 if left else tick)))
            self._wake.clear()

    def _fail_safe(self) -> None:
        """A guard that cannot look stops everything, and lives on to try again."""
        self.decision = UNSEEN
        try:
            self._stop(UNSEEN, self._clock.boot())
        except Exception as error:  # the supervisors still hold their deadlines
            self._log.error("guard_could_not_stop", error=repr(error))

    def _round(self) -> None:
        rules = rules_of(self._context.runtime, self._context.owner.rules_or_strict())
        readings, stopped = self._look(rules)
        free = [one.vram_free_mb for one in readings if one.vram_free_mb is not None]
        self.vram_free_mb = free[0] if free else None
        problems = {source.name: source.problem for source in self._sources}
        found = found_in(rules, readings, problems)
        self.looked_at = self._clock.boot()
        self.causes = follow(self.causes, found, self._clock.wall())
        decision = decide(rules, readings, self.cooldown_left_s())
        report = self._apply(decision)
        self._extend_cooldown()
        report = stopped if stopped.count else report
        if report.count or (
            decision != self._told and not self._told_too_often(self._clock.boot())
        ):
            self._tell(decision, readings, report)
            self._told = decision
            self._told_at.append(self._clock.boot())
        self.ready.set()

    def _look(self, rules: Rules) -> tuple[list[Reading], Stopped]:
        """What each source sees. The first that sees presence, or nothing, ends the work at once.

        Its owner does not wait for a source that is slow or hangs.
        """
        settings, first = self._settings, not self.ready.is_set()  # who starts may take longer
        patience_s = settings.first_look_sec if first else settings.source_timeout_sec
        if not self._busy():  # one after another, which wakes fewer threads
            return [source.look(patience_s) for source in self._sources], Stopped()
        for source in self._sources:
            source.ask()
        stopped, readings = Stopped(), {}
        for source in self._as_they_answer(patience_s):
            reading = readings[source.name] = source.reading(0.0)
            if reading.present is not False and not stopped.count:
                stopped = self._apply(decide(rules, [reading], self.cooldown_left_s()))
        return [readings[source.name] for source in self._sources], stopped

    def _as_they_answer(self, patience_s: float) -> Iterator[Watched]:
        """Each source once it has answered; what has not at the end of the time, then."""
        waiting, limit = list(self._sources), self._clock.boot() + patience_s
        while waiting:
            self._answers.clear()
            settled = [one for one in waiting if one.settled]
            left_s = limit - self._clock.boot()
            if not settled and left_s > 0:
                self._answers.wait(left_s)
                continue
            for one in settled or waiting[:]:
                waiting.remove(one)
                yield one

    def _apply(self, decision: Decision) -> Stopped:
        """Let a decision count; what may not run is gone when this returns."""
        decided_at, before = self._clock.boot(), self.decision
        if before.safe:
            self._tripped = not decision.safe
            if self._tripped:
                self._cooldown_until = decided_at + self._cooldown_s()
        self.decision = decision
        if decision != before:
            self._changed()  # first, so that no work arrives for what is being stopped
        return Stopped() if decision.safe else self._stop(decision, decided_at)

    def _stop(self, decision: Decision, decided_at: float) -> Stopped:
        report = self._stop_all(decision, decided_at)
        if report.count:
            self._trip = (decided_at, report)
        return report

    def _told_too_often(self, now: float) -> bool:
        """A measure that flaps: what is not logged now is logged later, if it still holds."""
        full = len(self._told_at) == self._told_at.maxlen
        return full and now - self._told_at[0] < 60

    def _tell(self, decision: Decision, readings: Sequence[Reading], report: Stopped) -> None:
        entry: dict[str, Any] = {
            "safe": decision.safe,
            "may_poll": decision.may_poll,
            "availability": decision.availability.value,
            "reasons": list(decision.reasons),
            "measures": {key: value for item in readings for key, value in item.measures.items()},
            "problems": [one.holder.who for one in self.causes],
            "stopped": report.count,
            "stopped_ms": round(report.ms, 1),
        }
        # The tasks that it stopped have written their ends meanwhile.
        age_s = self._clock.boot() - self._trip[0] if report.count else 0.0
        try:
            self._context.journal.write(self._clock.wall() - age_s, "decision", **entry)
        except OSError as error:
            self._log.warning("decision_log_failed", error=str(error))
        self._log.info("decision", **entry)
