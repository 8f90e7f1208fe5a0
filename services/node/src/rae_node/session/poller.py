"""Long polls: at most two at a time, the newer one replaces the older."""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence
from typing import Any

from rae_node.context import AgentContext
from rae_node.session.backoff import Pauses
from rae_node.session.session import Link
from rae_node.session.slots import Slots
from rae_protocol.errors import EnvelopeError, RaeError
from rae_protocol.models import Command, LeasedTask, Wanted
from rae_protocol.node_client import Polled

Want = tuple[str, ...]  # free slots; () asks for commands alone


class Poller:
    """Keeps one poll open that asks for what the node wants now.

    When that changes (a slot became free, work began), the other thread opens a new poll at once;
    control answers the older one of the same session when a newer comes, so none is lost.
    When the node wants nothing any more, a poll without slots or waiting takes the question back.
    """

    def __init__(
        self,
        context: AgentContext,
        link: Link,
        slots: Slots[Any],
        *,
        want: Callable[[], Want | None],
        on_task: Callable[[LeasedTask, int], None],
        on_commands: Callable[[Sequence[Command], Wanted | None], None],
    ) -> None:
        self._context, self._link, self._slots = context, link, slots
        self._want, self._on_task, self._on_commands = want, on_task, on_commands
        self._clock, self._log = context.clock, context.log
        self._pauses = Pauses(context.settings.retry_base_sec, context.settings.retry_cap_sec)
        self._changed = threading.Condition()
        self._newest: tuple[int, Want] | None = None
        self._count = 0
        self._open = 0
        self._not_before = 0.0
        self._stopping = False

    def start(self) -> None:
        """Begin to poll."""
        for number in range(2):
            threading.Thread(target=self._run, name=f"poll-{number}", daemon=True).start()

    def stop(self) -> None:
        """Open no more polls."""
        self._stopping = True
        self.wake()

    def wake(self) -> None:
        """What the node wants may have changed."""
        with self._changed:
            self._changed.notify_all()

    def _run(self) -> None:
        while True:
            with self._changed:
                mine = self._next()
            if mine is None:
                return
            number, want, wait, epoch = mine
            began = self._clock.boot()
            polled, refused = None, False
            try:
                polled = self._link.call(
                    lambda: self._context.client.poll(wait_s=wait, slots=want)  # noqa: B023 - called within this round
                )
                self._link.adopt(polled.periods)  # before the task: it is leased by them
                if polled.task is not None:
                    self._on_task(polled.task, epoch)
                self._on_commands(polled.commands, polled.wanted)
            except EnvelopeError as error:
                self._log.error("task_not_accepted", error=error.message)
                refused = True
            except RaeError as error:
                self._log.info("poll_failed", rc=error.rc, error=error.message)
                if not self._pauses.failures:
                    self._link.beat_now()  # control may have started anew, with other periods
            except Exception as error:  # the loop's one catch
                self._log.error("poll_broke", error=repr(error))
            with self._changed:
                hurried = self._clock.boot() - began < min(1.0, wait / 2)
                self._done(number, polled, refused=refused, hurried=hurried)

    @property
    def _interval_s(self) -> float:
        return self._context.runtime.execution.poll_interval_sec

    def _next(self) -> tuple[int, Want, float, int] | None:
        """Wait until a new poll is due (number, slots, seconds, epoch); None when it is over."""
        while True:
            ready = self._link.ready.is_set()
            want = self._want() if ready and not self._stopping else None
            if want is None and ready and self._newest is not None and self._newest[1]:
                return self._begin((), 0.0)
            if self._stopping:
                return None
            rest = self._not_before - self._clock.boot()
            if want is not None and rest <= 0 and (self._newest is None or self._newest[1] != want):
                return self._begin(want, self._context.settings.poll_wait_sec)
            self._changed.wait(rest if want is not None and rest > 0 else self._interval_s)

    def _begin(self, want: Want, wait: float) -> tuple[int, Want, float, int]:
        self._count += 1
        self._open += 1
        self._newest = (self._count, want)
        return self._count, want, wait, self._slots.epoch

    def _done(self, number: int, polled: Polled | None, *, refused: bool, hurried: bool) -> None:
        self._open -= 1
        current = self._newest is not None and self._newest[0] == number
        if current:
            self._newest = None
        if polled is None:
            pause = self._pauses.next()
            self._not_before = self._clock.boot() + (self._interval_s if refused else pause)
        else:
            self._pauses.failures = 0
            empty = polled.task is None and not polled.commands
            # Control would not wait. Unless the answer is only that an older poll crossed this one.
            if empty and hurried and current and not self._open:
                self._not_before = self._clock.boot() + self._interval_s
        self._changed.notify_all()
