"""The guard's thread: looks, decides, and stops the work before it says so."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from rae_node.clock import Clock
from rae_node.guard.policy import UNSEEN, Decision, Reading, Rules, decide
from rae_node.guard.sources.base import Source, Watched
from rae_node.log import DecisionLog, EventLog
from rae_node.settings import Settings


@dataclass(frozen=True, slots=True)
class Stopped:
    """What a round stopped: tasks, and milliseconds from the decision to the last process gone."""

    count: int = 0
    ms: float = 0.0


class Guard:
    """Looks every second while a task runs, else more slowly, and at once when woken.

    `stop_all(decision, decided_at)` ends all work and returns when nothing lives; `deadlines()`
    enforces what is due and returns seconds until the next; `changed()` hears of new decisions.
    """

    def __init__(
        self,
        rules: Rules,
        sources: Sequence[Source],
        cooldown_s: float,
        *,
        clock: Clock,
        settings: Settings,
        log: EventLog,
        decisions: DecisionLog,
        busy: Callable[[], bool],
        stop_all: Callable[[Decision, float], Stopped],
        deadlines: Callable[[], float],
        changed: Callable[[], None],
    ) -> None:
        self.decision = UNSEEN
        self.ready = threading.Event()
        self._rules, self._cooldown_s = rules, cooldown_s
        self._sources = [Watched(source) for source in sources]
        self._clock, self._settings, self._log, self._decisions = clock, settings, log, decisions
        self._busy, self._stop_all = busy, stop_all
        self._deadlines, self._changed = deadlines, changed
        self._cooldown_until = 0.0
        self._wake = threading.Event()
        self._rounds = threading.Condition()
        self._asked = self._done = 0
        self._trip: tuple[float, Stopped] | None = None
        self._stopping = False

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
            if self._trip is None or self._trip[0] < since:
                return Stopped()
            return self._trip[1]

    def begin_cooldown(self) -> None:
        """A task was yielded: wait before asking for more."""
        self._cooldown_until = self._clock.boot() + self._cooldown_s
        self._wake.set()

    def cooldown_left_s(self) -> float:
        """Seconds until polling may go on."""
        return max(0.0, self._cooldown_until - self._clock.boot())

    def _run(self) -> None:
        while not self._stopping:
            # Deadlines first: after a suspend or a stop nothing else matters.
            rest = self._due()
            with self._rounds:
                serving = self._asked
            self._round()
            with self._rounds:
                self._done = serving
                self._rounds.notify_all()
            settings = self._settings
            tick = settings.guard_busy_sec if self._busy() else settings.guard_idle_sec
            left = self.cooldown_left_s()
            pause = min(tick, rest, left + 0.001 if left else tick)
            self._wake.wait(max(pause, 0.001))
            self._wake.clear()

    def _due(self) -> float:
        try:
            return self._deadlines()
        except Exception as error:  # the loop's one catch: a guard that dies guards nothing
            self._log.error("guard_deadlines_failed", error=repr(error))
            return self._settings.guard_busy_sec

    def _round(self) -> None:
        try:
            readings = self._look()
            before = self.decision
            decision = decide(self._rules, readings, self.cooldown_left_s())
            decided_at = self._clock.boot()
            if before.safe and not decision.safe:
                self._cooldown_until = decided_at + self._cooldown_s
            self.decision = decision
            if decision != before:
                self._changed()  # first, so that no work arrives for what is being stopped
            report = Stopped() if decision.safe else self._stop_all(decision, decided_at)
            if report.count:
                self._trip = (decided_at, report)
            if decision != before:
                self._tell(decision, readings, report)
            self.ready.set()
        except Exception as error:  # the loop's one catch: unknown means present
            self._log.error("guard_round_failed", error=repr(error))
            self.decision = UNSEEN
            self._stop_all(UNSEEN, self._clock.boot())

    def _look(self) -> list[Reading]:
        for source in self._sources:
            source.ask()
        return [source.reading(self._settings.source_timeout_sec) for source in self._sources]

    def _tell(self, decision: Decision, readings: Sequence[Reading], report: Stopped) -> None:
        entry: dict[str, Any] = {
            "safe": decision.safe,
            "may_poll": decision.may_poll,
            "availability": decision.availability.value,
            "reasons": list(decision.reasons),
            "measures": {key: value for item in readings for key, value in item.measures.items()},
            "stopped": report.count,
            "stopped_ms": round(report.ms, 1),
        }
        try:
            self._decisions.write(self._clock.wall(), entry)
        except OSError as error:
            self._log.warning("decision_log_failed", error=str(error))
        self._log.info("decision", **entry)
