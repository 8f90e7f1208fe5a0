"""Long polls: who gets which task, and orders to nodes within milliseconds."""

from __future__ import annotations

import json
import secrets
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gevent.event import Event

from rae_control.core.lanes import Lane
from rae_control.core.leases import Lease
from rae_control.core.matching import slot_kind, vram_needed_mb
from rae_control.core.why import why_nothing
from rae_control.ledger import claims
from rae_control.ledger.base import Moved
from rae_control.mesh.state import State
from rae_control.node_table import NodeEntry
from rae_protocol.errors import RaeError
from rae_protocol.models import canonical
from rae_protocol.nodes import Command, LeasedTask, PollAnswer, Reason
from rae_protocol.signing import EnvelopeSigner

# A poll looks again by itself after this long: a lost wake-up costs seconds, not a task.
RECHECK_S = 5.0


@dataclass(slots=True, eq=False)
class Poll:
    """An open poll of a node's session. `replaced` when a newer one came."""

    node_id: str
    session: str | None
    slots: Sequence[str]
    vram_free_mb: float | None
    event: Event = field(default_factory=Event)
    replaced: bool = False

    def wake(self) -> None:
        """Let the poll look around."""
        self.event.set()


class Dispatcher:
    """Serves polls from the lanes."""

    def __init__(self, state: State, signer: EnvelopeSigner) -> None:
        self._state, self._signer = state, signer
        self._polls: dict[Poll, None] = {}
        self._stopped = False

    @property
    def open_polls(self) -> int:
        """How many polls wait now."""
        return len(self._polls)

    def poll(
        self, node_id: str, slots: Sequence[str] | None, vram_free_mb: float | None, wait_s: float,
        alive: Callable[[], bool],
    ) -> PollAnswer:  # fmt: skip
        """Answer with a task, with orders, or after `wait_s` with the reasons for nothing."""
        state = self._state
        end = state.clock.boot() + wait_s
        entry = self._entry(node_id)
        named = entry.facts.slots if slots is None else slots
        poll = Poll(node_id, entry.token_sha256, named, vram_free_mb)
        if entry.poll is not None:
            entry.poll.replaced = True
            entry.poll.wake()
        entry.poll = poll
        self._polls[poll] = None
        try:
            while True:
                poll.event.clear()
                entry = self._entry(node_id)
                if self._stopped:
                    raise RaeError("not_ready", "control stops", retry_after_s=1)
                if entry.token_sha256 != poll.session:
                    why = "A newer session of this node took over."
                    return _nothing("newer_session", why, entry)
                if poll.replaced:
                    why = "A newer poll of this session took over."
                    return _nothing("newer_poll", why, entry)
                commands = entry.take_commands()
                if commands:
                    return PollAnswer(commands=commands, wanted=entry.wanted)
                reason = self._refusal(entry, poll)
                if reason is None and alive():
                    task = self._claim(entry, poll, alive)
                    if task is not None:
                        return PollAnswer(task=task, wanted=entry.wanted)
                left = end - state.clock.boot()
                if left <= 0:
                    reasons = [reason or self._why(entry, poll)]
                    return PollAnswer(reasons=reasons, wanted=entry.wanted)
                poll.event.wait(min(left, RECHECK_S))
        finally:
            self._polls.pop(poll, None)
            entry = self._entry(node_id)
            if entry.poll is poll:
                entry.poll = None

    def stop(self) -> None:
        """Send all polls away, now and later."""
        self._stopped = True
        for poll in self._polls:
            poll.wake()

    def wake_for(self, moves: Sequence[Moved]) -> None:
        """Tasks were queued: wake as many fitting polls as there are tasks.

        Polls of nodes where a task failed come last.
        """
        groups = Counter((move.task["lane_id"], move.task["avoid"]) for move in moves)
        for (lane_id, avoid), count in groups.items():
            lane, failed = self._state.lanes.lanes.get(lane_id), set(json.loads(avoid or "[]"))
            if lane is None:
                continue
            left = self._wake(lane, count, lambda node_id: node_id not in failed)  # noqa: B023 - called within this round
            if failed and left:
                self._wake(lane, left, lambda node_id: node_id in failed)  # noqa: B023 - as above

    def _wake(self, lane: Lane, count: int, may: Callable[[str], bool]) -> int:
        """Wake so many polls that fit; returns for how many tasks there was none."""
        for poll in self._polls:
            if count <= 0:
                break
            if poll.event.is_set() or not poll.slots or not may(poll.node_id):
                continue
            node = self._state.nodes.get(poll.node_id)
            if node is None or node.state != "online":
                continue
            if self._serves(node, self.free_slots(node, poll.slots), poll.vram_free_mb, lane):
                poll.wake()
                count -= 1
        return count

    def wake_node(self, node_id: str) -> None:
        """Something about a node changed."""
        node = self._state.nodes.get(node_id)
        if node is not None and node.poll is not None:
            node.poll.wake()

    def tell_cancel(self, lease: Lease | None, reason: str) -> None:
        """Order a node to stop the work of a lease."""
        node = self._state.nodes.get(lease.node_id) if lease else None
        if lease is None or node is None:
            return
        node.order(
            Command(command="cancel", task_id=lease.task_id, lease_id=lease.lease_id, reason=reason)
        )

    def stops(self, node_id: str) -> list[Command]:
        """Orders to stop what was cut off on a node and is not known to be dead."""
        return [
            Command(command="cancel", task_id=fence.task_id, lease_id=lease_id, reason="cut off")
            for lease_id, fence in self._state.fences.items()
            if fence.node_id == node_id
        ]

    def free_slots(self, entry: NodeEntry, slots: Sequence[str]) -> list[str]:
        """The named slots without an open lease."""
        busy = {lease.slot for lease in self._state.leases.of_node(entry.node_id)}
        return [slot for slot in slots if slot in entry.facts.slots and slot not in busy]

    def offered(self, entry: NodeEntry) -> list[str]:
        """The slots that the node's open poll names and that hold no lease."""
        return [] if entry.poll is None else self.free_slots(entry, entry.poll.slots)

    def _entry(self, node_id: str) -> NodeEntry:
        entry = self._state.nodes.get(node_id)
        if entry is None:
            raise RaeError("register_again", f"node {node_id} is not known any more")
        return entry

    def _refusal(self, entry: NodeEntry, poll: Poll) -> Reason | None:
        if not entry.online:
            return Reason(code="offline", message="The node is offline: register again.")
        if entry.state != "online":
            why = entry.cordoned or entry.draining
            return Reason(code=entry.state, message=f"The node is {entry.state}: {why}.")
        if not poll.slots:
            return Reason(code="no_free_slot", message="The poll named no free slot: orders only.")
        if not self.free_slots(entry, poll.slots):
            return Reason(code="slot_busy", message="A lease is open for each of the named slots.")
        held = self._state.why_held()
        return None if held is None else Reason(code="restored", message=held)

    def _why(self, entry: NodeEntry, poll: Poll) -> Reason:
        wanted = self._state.nodes.wanted
        lanes = {n.lane_id: wanted(n.requirements) for n in self._state.lanes.lanes.values()}
        code, message = why_nothing(lanes, entry.facts, self.free_slots(entry, poll.slots))
        return Reason(code=code, message=message)

    def _serves(
        self, entry: NodeEntry, slots: Sequence[str], vram_free_mb: float | None, lane: Lane
    ) -> bool:
        if not entry.fit(lane.lane_id, self._state.nodes.wanted(lane.requirements)):
            return False
        needed = vram_needed_mb(lane.requirements)
        if vram_free_mb is not None and needed > vram_free_mb:
            return False
        kind = slot_kind(lane.requirements, entry.facts)
        return any(slot.startswith(kind) for slot in slots)

    def _claim(
        self, entry: NodeEntry, poll: Poll, alive: Callable[[], bool]
    ) -> dict[str, Any] | None:
        state = self._state
        with entry.claiming:
            free = self.free_slots(entry, poll.slots)
            offers = self._offers(entry, free, poll.vram_free_mb)
            # Asked again: somebody may have hung up while the lock was held.
            if not offers or poll.replaced or not alive():
                return None
            # Before the commit: polls that come meanwhile begin with another submitter.
            state.lanes.served(offers[0].lane_id)
            claim = partial(
                claims.claim, node_id=entry.node_id, session=poll.session, offers=offers,
                lease_id=self._lease_id(), acked=not entry.acks, another=state.another,
            )  # fmt: skip
            claimed = state.write(claim)
            while claimed is claims.UNFINISHED and alive() and not poll.replaced:
                claimed = state.write(claim)
            if not isinstance(claimed, claims.Claimed):
                state.metrics.claim_lost()
                return None
            if claimed.task["lane_id"] != offers[0].lane_id:
                state.lanes.served(claimed.task["lane_id"])
            return self._leased(entry, claimed)

    def _offers(
        self, entry: NodeEntry, free: Sequence[str], vram_free_mb: float | None
    ) -> list[claims.LaneOffer]:
        """The lanes that the node can serve now, in order, and what it gives to each."""
        if not free:
            return []
        lanes = self._state.lanes
        fitting = [n for n in lanes.lanes.values() if self._serves(entry, free, vram_free_mb, n)]
        offers = []
        for lane in lanes.in_order(fitting):
            kind = slot_kind(lane.requirements, entry.facts)
            slot = next(name for name in free if name.startswith(kind))
            vram_mb, uuids = vram_needed_mb(lane.requirements), _gpu_uuid(entry, slot)
            offers.append(claims.LaneOffer(lane.lane_id, slot, vram_mb, uuids))
        return offers

    def _lease_id(self) -> str:
        # The incarnation is part of it: a lease from before a restore is never taken for a new one.
        return f"{self._state.ledger.incarnation[:8]}-{secrets.token_hex(8)}"

    def _leased(self, entry: NodeEntry, claimed: claims.Claimed) -> dict[str, Any]:
        state, task, now = self._state, claimed.task, self._state.clock.wall()
        spec = claimed.spec
        leased = LeasedTask(
            task_id=task["task_id"],
            attempt=task["attempts"],
            lease_id=task["lease_id"],
            slot=task["slot"],
            kind=spec.kind,
            params=spec.params,
            inputs=claimed.inputs,
            artifacts=spec.artifacts,
            timeout_s=spec.timeout_s,
            lease_ttl_s=task["lease_ttl_s"],
            labels=spec.labels,
            node_id=entry.node_id,
            incarnation=state.ledger.incarnation,
            issued_at=now,
            expires_at=now + state.config.envelope_ttl_s,
        )
        body = leased.model_dump(mode="json", exclude_none=True)
        return self._signer.seal(canonical(body)) if entry.kind == "hmac" else body


def _gpu_uuid(entry: NodeEntry, slot: str) -> tuple[str, ...]:
    gpus = entry.info.capabilities.gpu if entry.info else None
    if not slot.startswith("gpu") or not isinstance(gpus, list):
        return ()
    index = int(slot[3:])
    return (gpus[index].uuid or gpus[index].name,) if index < len(gpus) else ()


def _nothing(code: str, message: str, entry: NodeEntry) -> PollAnswer:
    return PollAnswer(reasons=[Reason(code=code, message=message)], wanted=entry.wanted)
