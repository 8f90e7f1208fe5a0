"""The session with control: one thread registers, beats, and acts on what other calls learn."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable, Sequence
from typing import Any, Protocol, TypeVar

from rae_node.config.files import refuse_public_http
from rae_node.context import AgentContext
from rae_node.errors import Verdict, verdict
from rae_node.session.backoff import Pauses
from rae_node.session.slots import Slots
from rae_node.session.spool import Spool
from rae_protocol.errors import RaeError, Unreachable
from rae_protocol.models import (
    Command,
    Heartbeat,
    HeartbeatAnswer,
    LeaseRef,
    Periods,
    Registered,
    RegisterRequest,
    Wanted,
)

T = TypeVar("T")


class Ears(Protocol):
    """What the agent tells control, and what it does about control's news."""

    def introduce(self, unfinished: list[LeaseRef]) -> RegisterRequest:
        """What the node is, with the leases that it still holds."""
        ...

    def beat(self, leases: list[LeaseRef]) -> Heartbeat:
        """How the node is."""
        ...

    def registered(self, commands: Sequence[Command], wanted: Wanted | None) -> None:
        """A session has begun, with these orders and the state that control wants."""
        ...

    def renewed(self, lease_ids: frozenset[str], sent_at: float) -> None:
        """Control answered for these leases; the question was sent at that boot time."""
        ...

    def commanded(self, commands: Sequence[Command], wanted: Wanted | None) -> None:
        """Orders, and the state that control wants; an older control names none."""
        ...

    def disowned(self, why: str) -> None:
        """No lease of ours is worth anything any more: kill and forget."""
        ...

    def leave(self, why: str) -> None:
        """This agent must end (exit code 1)."""
        ...


class Link:
    """Keeps the node registered, with heartbeats. Control being away never stops it."""

    def __init__(self, context: AgentContext, slots: Slots[Any], spool: Spool, ears: Ears) -> None:
        self.ready = threading.Event()
        self.lease_margin_s = 0.0
        self.incarnation: str | None = None
        self.last_answer: float | None = None
        self.state, self.problem = "connecting", "control has not answered yet"
        self.silence = ""  # why the last heartbeat of a registered node got no answer
        self._context, self._slots, self._spool, self._ears = context, slots, spool, ears
        self._client, self._clock, self._log = context.client, context.clock, context.log
        self._interval = context.config.heartbeat_interval_sec
        self._pauses = Pauses(context.settings.retry_base_sec, context.settings.retry_cap_sec)
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

    def introduce_again(self) -> None:
        """Register anew: what the node can do has changed. What runs goes on."""
        self.ready.clear()
        self._wake.set()

    def adopt(self, periods: Registered | Periods) -> None:
        """Take control's periods over: they are others when it has started with other settings."""
        if periods.lease_margin_s is not None:
            self.lease_margin_s = periods.lease_margin_s
        if periods.heartbeat_interval_sec is None:
            return
        before = self._interval
        own = self._context.config.heartbeat_interval_sec
        self._interval = min(own, periods.heartbeat_interval_sec)
        if self._interval != before:
            self._log.info("heartbeat_interval_from_control", seconds=self._interval)
            self._wake.set()  # the pause that runs is as long as the old interval

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
        if found in {Verdict.REGISTER, Verdict.UNWELCOME} and self.ready.is_set():
            self._log.info("session_over", rc=error.rc)
            self.ready.clear()
            self.state, self.problem = error.rc, error.message
            self._wake.set()
        if found is Verdict.SUPERSEDED:
            self._ears.leave(f"another agent with this node_id took over: {error.message}")
        elif found is Verdict.UNWELCOME:
            self._ears.disowned(error.rc)

    def _run(self) -> None:
        while not self._stopping:
            self._wake.clear()
            try:
                if self.ready.is_set():
                    self._heartbeat()
                else:
                    self._register()
                self._pauses.failures = 0
                pause = self._jittered(self._interval)
            except RaeError as error:
                pause = self._trouble(error)
            except Exception as error:  # the loop's one catch
                self._log.error("heartbeat_failed", error=repr(error))
                self.problem = str(error)
                pause = self._pauses.next()
            self._wake.wait(pause)

    def _register(self) -> None:
        refuse_public_http(self._context.config.rae_endpoint)
        sent = self._clock.boot()
        leases = self._known(self._slots.new_epoch())
        answer = self.call(lambda: self._client.register(self._ears.introduce(leases)))
        self.adopt(answer)
        self._heard(answer, leases, sent)
        self.state, self.problem = "registered", ""
        self.ready.set()  # before the agent is called: it wakes those who wait for this
        self._log.info("registered", unfinished=len(leases), incarnation=answer.incarnation)
        self._ears.registered(answer.commands, answer.wanted)

    def _heartbeat(self) -> None:
        leases = self._known([occupant.lease for occupant in self._slots.occupants()])
        sent = self._clock.boot()
        answer = self.call(lambda: self._client.heartbeat(self._ears.beat(leases)))
        self.adopt(answer)
        self._heard(answer, leases, sent)
        self._ears.commanded(answer.commands, answer.wanted)

    def _known(self, running: list[LeaseRef]) -> list[LeaseRef]:
        # Running first: what moves to the spool meanwhile is then met twice, never missed.
        every = {lease.lease_id: lease for lease in (*running, *self._spool.leases())}
        return list(every.values())[:1000]

    def _heard(
        self, answer: Registered | HeartbeatAnswer, sent_leases: list[LeaseRef], sent: float
    ) -> None:
        """An answer renews the leases of its request, but for those that it cancels."""
        self.last_answer, self.silence = self._clock.boot(), ""
        if self.incarnation not in {None, answer.incarnation}:
            self._log.warning("control_has_another_past", incarnation=answer.incarnation)
            self._ears.disowned("control was restored from a backup")
            self._wake.set()  # a restored control waits for the word that nothing of it runs
        self.incarnation = answer.incarnation
        over = {item.lease_id for item in answer.commands if item.command == "cancel"}
        self._ears.renewed(frozenset(lease.lease_id for lease in sent_leases) - over, sent)

    def _trouble(self, error: RaeError) -> float:
        away = isinstance(error, Unreachable)
        tell = {"rc": error.rc, "error": error.message}
        if isinstance(error, Unreachable):
            tell["reason"] = error.reason
        self._log.warning("control_unreachable" if away else "control_refused", **tell)
        if away and not self._context.runtime.execution.retry_on_disconnect:
            self._ears.leave("control does not answer and retry_on_disconnect is false")
        if self.ready.is_set():
            self.silence = error.message if away else ""
            return min(self._pauses.next(), self._interval)
        self.state, self.problem = error.rc, error.message
        if verdict(error) is Verdict.RETRY or error.rc == "register_again":
            return self._pauses.next()
        # Somebody must act (enrol, stop the other machine): asking more often does not help.
        return self._jittered(self._context.settings.slow_retry_sec)

    def _jittered(self, seconds: float) -> float:
        share = self._context.settings.heartbeat_jitter
        return seconds * random.uniform(1 - share, 1 + share)  # noqa: S311 - jitter, not a secret
