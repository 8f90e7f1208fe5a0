"""The session with control: one thread registers and beats, and heeds what the others hear."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from typing import Protocol, TypeVar

from rae_node.clock import Clock
from rae_node.config import refuse_public_http
from rae_node.log import EventLog
from rae_node.settings import Settings
from rae_node.slots import Slots
from rae_node.spool import Spool
from rae_node.verdicts import Verdict, verdict
from rae_protocol.errors import RaeError, Unreachable
from rae_protocol.models import Command, Heartbeat, LeaseRef, Registered, RegisterRequest
from rae_protocol.node_client import NodeClient
from rae_protocol.transport import Backoff

T = TypeVar("T")


class Ears(Protocol):
    """What the agent does about news from control."""

    def registered(self, answer: Registered) -> None:
        """A session has begun."""
        ...

    def renewed(self, lease_ids: frozenset[str], sent_at: float) -> None:
        """Control answered for these leases; the question was sent at that boot time."""
        ...

    def commanded(self, commands: Sequence[Command]) -> None:
        """Orders."""
        ...

    def disowned(self, why: str) -> None:
        """No lease of ours is worth anything any more: kill and forget."""
        ...

    def leave(self, why: str) -> None:
        """This agent must end (exit code 1)."""
        ...


class Link:
    """Keeps the node registered and heard. Control being away never stops it."""

    def __init__(
        self,
        client: NodeClient,
        slots: Slots,
        spool: Spool,
        ears: Ears,
        *,
        url: str,
        introduce: Callable[[list[LeaseRef]], RegisterRequest],
        beat: Callable[[list[LeaseRef]], Heartbeat],
        interval_s: float,
        keep_trying: bool,
        clock: Clock,
        settings: Settings,
        log: EventLog,
    ) -> None:
        self.ready = threading.Event()
        self.lease_margin_s = 0.0
        self.incarnation: str | None = None
        self.last_answer: float | None = None
        self.state = "connecting"
        self._client, self._slots, self._spool, self._ears = client, slots, spool, ears
        self._url, self._introduce, self._beat = url, introduce, beat
        self._own_interval = self._interval = interval_s
        self._keep_trying = keep_trying
        self._clock, self._settings, self._log = clock, settings, log
        self._rng = random.Random()  # noqa: S311 - jitter, not a secret
        self._backoff = Backoff(base_s=settings.retry_base_sec, cap_s=settings.retry_cap_sec)
        self._wake = threading.Event()
        self._stopping = False

    def start(self) -> None:
        """Begin to register."""
        threading.Thread(target=self._run, name="heartbeat", daemon=True).start()

    def stop(self) -> None:
        """End the thread."""
        self._stopping = True
        self._wake.set()

    def beat_now(self) -> None:
        """Tell control at once what has changed."""
        self._wake.set()

    def call(self, action: Callable[[], T]) -> T:
        """Make a call of the session; what the answer says about the session is heeded here.

        Raises what the action raises.
        """
        epoch = self._slots.epoch
        try:
            return action()
        except RaeError as error:
            # An answer to a session that was replaced meanwhile says nothing about this one.
            if epoch == self._slots.epoch:
                self._heed(error)
            raise

    def _heed(self, error: RaeError) -> None:
        found = verdict(error)
        if found is Verdict.SUPERSEDED:
            self._ears.leave("another agent with this node_id took over")
        elif found in {Verdict.REGISTER, Verdict.UNWELCOME} and self.ready.is_set():
            self._log.info("session_over", rc=error.rc)
            self.ready.clear()
            self.state = error.rc
            if found is Verdict.UNWELCOME:
                self._ears.disowned(error.rc)
            self._wake.set()

    def _run(self) -> None:
        failures = 0
        while not self._stopping:
            self._wake.clear()
            try:
                if self.ready.is_set():
                    self._heartbeat()
                else:
                    self._register()
                failures = 0
                pause = self._jittered(self._interval)
            except RaeError as error:
                pause = self._trouble(error, failures)
                failures += 1
            except Exception as error:  # the loop's one catch
                self._log.error("heartbeat_failed", error=repr(error))
                pause = self._backoff.delay(failures, self._rng) + self._backoff.base_s
                failures += 1
            self._wake.wait(pause)

    def _register(self) -> None:
        refuse_public_http(self._url)
        sent = self._clock.boot()
        leases = self._known(self._slots.new_epoch())
        answer = self._client.register(self._introduce(leases))
        self._interval = min(self._own_interval, answer.heartbeat_interval_sec)
        if self._interval != self._own_interval:
            self._log.info("heartbeat_interval_from_control", seconds=self._interval)
        self.lease_margin_s = answer.lease_margin_s
        self._answered(answer.incarnation)
        self._ears.registered(answer)
        self._ears.renewed(frozenset(lease.lease_id for lease in leases), sent)
        self.state = "registered"
        self.ready.set()
        self._log.info("registered", unfinished=len(leases), incarnation=answer.incarnation)
        self._ears.commanded(answer.commands)

    def _heartbeat(self) -> None:
        leases = self._known([occupant.lease for occupant in self._slots.occupants()])
        sent = self._clock.boot()
        answer = self.call(lambda: self._client.heartbeat(self._beat(leases)))
        self._answered(answer.incarnation)
        cancelled = {item.lease_id for item in answer.commands if item.command == "cancel"}
        alive = frozenset(lease.lease_id for lease in leases) - cancelled
        self._ears.renewed(frozenset(item for item in alive if item is not None), sent)
        self._ears.commanded(answer.commands)

    def _known(self, running: list[LeaseRef]) -> list[LeaseRef]:
        # Running first: what moves to the spool meanwhile is then met twice, never missed.
        every = {lease.lease_id: lease for lease in (*running, *self._spool.leases())}
        return list(every.values())[:1000]

    def _answered(self, incarnation: str) -> None:
        self.last_answer = self._clock.boot()
        if self.incarnation not in {None, incarnation}:
            self._log.warning("control_has_another_past", incarnation=incarnation)
            self._ears.disowned("control was restored from a backup")
        self.incarnation = incarnation

    def _trouble(self, error: RaeError, failures: int) -> float:
        found = verdict(error)
        self._log.warning(
            "control_unreachable" if isinstance(error, Unreachable) else "control_refused",
            rc=error.rc,
            error=error.message,
        )
        if isinstance(error, Unreachable) and not self._keep_trying:
            self._ears.leave("control does not answer and retry_on_disconnect is false")
        if self.ready.is_set():
            return min(self._backoff.delay(failures, self._rng) + 0.05, self._interval)
        self.state = error.rc
        if found is Verdict.SUPERSEDED:
            self._ears.leave("another agent with this node_id took over")
        if found is Verdict.UNWELCOME:
            self._ears.disowned(error.rc)
        if found is Verdict.RETRY or error.rc == "register_again":
            return self._backoff.delay(failures, self._rng) + 0.05
        # Somebody must act (enrol, stop the other machine): asking more often helps nobody.
        return self._jittered(self._settings.slow_retry_sec)

    def _jittered(self, seconds: float) -> float:
        share = self._settings.heartbeat_jitter
        return seconds * self._rng.uniform(1 - share, 1 + share)
