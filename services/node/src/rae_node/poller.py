"""Long polls: at most two at a time, the newer one replaces the older."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence

from rae_node.clock import Clock
from rae_node.link import Link
from rae_node.log import EventLog
from rae_node.settings import Settings
from rae_node.slots import Slots
from rae_protocol.errors import EnvelopeError, RaeError
from rae_protocol.models import Command, LeasedTask
from rae_protocol.node_client import NodeClient, Polled
from rae_protocol.transport import Backoff

Want = tuple[str, ...]  # free slots; () asks for commands alone


class Poller:
    """Keeps one poll open that asks for what the node wants now.

    When that changes (a slot became free, work began), the other thread opens a new poll at once;
    control answers the older one of the same session when a newer comes, so nobody waits for it.
    When the node wants nothing any more, a poll without slots or waiting takes the question back.
    """

    def __init__(
        self,
        client: NodeClient,
        link: Link,
        slots: Slots,
        *,
        want: Callable[[], Want | None],
        on_task: Callable[[LeasedTask, int], None],
        on_commands: Callable[[Sequence[Command]], None],
        interval_s: float,
        clock: Clock,
        settings: Settings,
        log: EventLog,
    ) -> None:
        self._client, self._link, self._slots = client, link, slots
        self._want, self._on_task, self._on_commands = want, on_task, on_commands
        self._interval_s = interval_s
        self._clock, self._settings, self._log = clock, settings, log
        self._rng = random.Random()  # noqa: S311 - jitter, not a secret
        self._backoff = Backoff(base_s=settings.retry_base_sec, cap_s=settings.retry_cap_sec)
        self._changed = threading.Condition()
        self._newest: tuple[int, Want] | None = None
        self._count = 0
        self._open = 0
        self._not_before = 0.0
        self._failures = 0
        self._stopping = False

    def start(self) -> None:
        """Begin to poll."""
        for number in range(2):
            threading.Thread(target=self._run, name=f"poll-{number}", daemon=True).start()

    def stop(self) -> None:
        """Open no more polls."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()

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
            polled = None
            pause = 0.0
            try:
                polled = self._link.call(lambda: self._client.poll(wait_s=wait, slots=want))  # noqa: B023 - called within this round
                if polled.task is not None:
                    self._on_task(polled.task, epoch)
                self._on_commands(polled.commands)
            except EnvelopeError as error:
                self._log.error("task_not_accepted", error=error.message)
                pause = self._interval_s
            except RaeError as error:
                self._log.info("poll_failed", rc=error.rc)
                pause = self._backoff.delay(self._failures, self._rng) + 0.05
            except Exception as error:  # the loop's one catch
                self._log.error("poll_broke", error=repr(error))
                pause = self._backoff.delay(self._failures, self._rng) + 0.05
            with self._changed:
                took = self._clock.boot() - began
                self._done(number, polled, pause, hurried=took < min(1.0, wait / 2))

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
                return self._begin(want, self._settings.poll_wait_sec)
            self._changed.wait(rest if want is not None and rest > 0 else self._interval_s)

    def _begin(self, want: Want, wait: float) -> tuple[int, Want, float, int]:
        self._count += 1
        self._open += 1
        self._newest = (self._count, want)
        return self._count, want, wait, self._slots.epoch

    def _done(self, number: int, polled: Polled | None, pause: float, *, hurried: bool) -> None:
        self._open -= 1
        current = self._newest is not None and self._newest[0] == number
        if current:
            self._newest = None
        if polled is None:
            self._failures += 1
            self._not_before = self._clock.boot() + pause
        else:
            self._failures = 0
            empty = polled.task is None and not polled.commands
            # Control would not wait. Unless the answer is only that an older poll crossed this one.
            if empty and hurried and current and not self._open:
                self._not_before = self._clock.boot() + self._interval_s
        self._changed.notify_all()
