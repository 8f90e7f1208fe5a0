"""Long polls: who gets which task, and orders to nodes within milliseconds."""

from __future__ import annotations

import json
import secrets
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from gevent.event import Event

from rae_control.core.lanes import Lane
from rae_control.core.leases import Lease
from rae_control.core.matching import slot_kind
from rae_control.core.why import why_nothing
from rae_control.errors import QueueUnavailable
from rae_control.ledger import results
from rae_control.ledger import tasks as ledger_tasks
from rae_control.ledger.store import Row, Tx
from rae_control.nodes import NodeEntry
from rae_control.reconcile import QueueKeeper
from rae_control.state import State
from rae_protocol.errors import RaeError
from rae_protocol.models import canonical
from rae_protocol.nodes import Command, LeasedInput, LeasedTask, PollAnswer, Reason
from rae_protocol.signing import EnvelopeSigner
from rae_protocol.tasks import BlobInput, InlineInput, TaskInput, TaskSpec, UrlInput

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


@dataclass(frozen=True, slots=True)
class Claimed:
    """A claim that the ledger confirmed."""

    task: Row
    inputs: dict[str, LeasedInput]


class Dispatcher:
    """Serves polls from the lanes."""

    def __init__(self, state: State, keeper: QueueKeeper, signer: EnvelopeSigner) -> None:
        self._state, self._keeper, self._signer = state, keeper, signer
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
                    return _nothing("newer_session", "A newer session of this node took over.")
                if poll.replaced:
                    return _nothing("newer_poll", "A newer poll of this session took over.")
                commands = entry.take_commands()
                if commands:
                    return PollAnswer(commands=commands)
                reason = self._refusal(entry, poll)
                if reason is None and alive():
                    task = self._claim(entry, poll, alive)
                    if task is not None:
                        return PollAnswer(task=task)
                left = end - state.clock.boot()
                if left <= 0:
                    return PollAnswer(reasons=[reason or self._why(entry, poll)])
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

    def wake_for(self, counts: dict[str, int]) -> None:
        """Tasks were pushed: wake as many fitting polls as there are tasks."""
        lanes = self._state.lanes.lanes
        for lane_id, count in counts.items():
            lane, left = lanes.get(lane_id), count
            if lane is None:
                continue
            for poll in self._polls:
                if left <= 0:
                    break
                if poll.event.is_set() or not poll.slots:
                    continue
                node = self._state.nodes.get(poll.node_id)
                if node is None or node.state != "online":
                    continue
                if self._serves(node, self.free_slots(node, poll.slots), poll.vram_free_mb, lane):
                    poll.wake()
                    left -= 1

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

    def free_slots(self, entry: NodeEntry, slots: Sequence[str]) -> list[str]:
        """The named slots without an open lease."""
        busy = {lease.slot for lease in self._state.leases.of_node(entry.node_id)}
        return [slot for slot in slots if slot in entry.facts.slots and slot not in busy]

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
        if not self._keeper.available:
            return Reason(code="queue_unavailable", message="The queue is away; polls go on.")
        held = self._state.why_held()
        return None if held is None else Reason(code="restored", message=held)

    def _why(self, entry: NodeEntry, poll: Poll) -> Reason:
        lanes = {lane.lane_id: lane.requirements for lane in self._state.lanes.lanes.values()}
        code, message = why_nothing(lanes, entry.facts, self.free_slots(entry, poll.slots))
        return Reason(code=code, message=message)

    @staticmethod
    def _serves(
        entry: NodeEntry, slots: Sequence[str], vram_free_mb: float | None, lane: Lane
    ) -> bool:
        if not entry.fit(lane.lane_id, lane.requirements):
            return False
        needed = lane.requirements.get("vram_gb", 0) * 1024
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
            # Asked again: somebody may have hung up while the lock was held.
            while free and not poll.replaced and alive():
                lanes = [
                    lane
                    for lane in state.lanes.lanes.values()
                    if self._serves(entry, free, poll.vram_free_mb, lane)
                ]
                order = [lane.lane_id for lane in state.lanes.in_order(lanes)]
                try:
                    found = self._keeper.queue.claim(order)
                except QueueUnavailable as error:
                    self._keeper.unavailable(error)
                    return None
                if found is None:
                    return None
                lane_id, task_id = found
                lane = state.lanes.lanes.get(lane_id)
                if lane is None:
                    continue
                state.lanes.served(lane_id)
                kind = slot_kind(lane.requirements, entry.facts)
                slot = next(s for s in free if s.startswith(kind))
                self._keeper.in_flight.add(task_id)
                try:
                    claimed = state.write(
                        partial(
                            _claim, task_id=task_id, lease_id=self._lease_id(),
                            who=ledger_tasks.Who(entry.node_id, slot), session=poll.session,
                            acked=not entry.acks,
                            vram_mb=lane.requirements.get("vram_gb", 0) * 1024,
                            uuids=_gpu_uuid(entry, slot),
                        )
                    )  # fmt: skip
                finally:
                    self._keeper.in_flight.discard(task_id)
                if claimed is not None:
                    return self._leased(entry, claimed)
                state.metrics.claim_lost()
        return None

    def _lease_id(self) -> str:
        # The incarnation is part of it: a lease from before a restore is never taken for a new one.
        return f"{self._state.ledger.incarnation[:8]}-{secrets.token_hex(8)}"

    def _leased(self, entry: NodeEntry, claimed: Claimed) -> dict[str, Any]:
        state, task, now = self._state, claimed.task, self._state.clock.wall()
        spec = TaskSpec.model_validate_json(task["spec"])
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


def _claim(
    tx: Tx, task_id: str, lease_id: str, who: ledger_tasks.Who, *, session: str | None,
    acked: bool, vram_mb: int, uuids: list[str],
) -> Claimed | None:  # fmt: skip
    # A session that began while this claim waited for its turn may be of another machine.
    if tx.row("SELECT 1 FROM nodes WHERE node_id = ? AND token_sha256 IS NOT ?",
              who.node_id, session):  # fmt: skip
        return None
    task = tx.row("SELECT * FROM tasks WHERE task_id = ? AND state = 'queued'", task_id)
    if task is None:
        return None
    inputs = _manifest(tx, task)
    if isinstance(inputs, str):
        results.fail_queued(tx, task, "E_INPUT", inputs)
        return None
    gpus = {"uuids": uuids, "vram_mb": vram_mb or None}
    claimed = ledger_tasks.claim(tx, task_id, lease_id, who, acked=acked, gpus=gpus)
    return None if claimed is None else Claimed(claimed, inputs)


def _manifest(tx: Tx, task: Row) -> dict[str, LeasedInput] | str:
    """Where the node gets each input; a sentence when one cannot be had any more."""
    out: dict[str, LeasedInput] = {}
    for name, source in TaskSpec.model_validate_json(task["spec"]).inputs.items():
        if isinstance(source, InlineInput):
            out[name] = LeasedInput(inline=source.inline, encoding=source.encoding)
        elif isinstance(source, UrlInput):
            out[name] = LeasedInput(url=source.url, sha256=source.sha256)
        else:
            found = resolve_input(tx, task["submitter"], source)
            if found is None:
                return f"input '{name}' is not there: {json.dumps(source.model_dump())}"
            out[name] = LeasedInput(sha256=found["sha256"], size=found["size"])
    return out


def resolve_input(tx: Tx, submitter: str, source: BlobInput | TaskInput) -> Row | None:
    """The blob (sha256, size) behind an input, or None."""
    if isinstance(source, BlobInput):
        return tx.row(
            "SELECT sha256, size FROM blobs WHERE sha256 = ? AND submitter = ?",
            source.sha256, submitter,
        )  # fmt: skip
    return tx.row(
        "SELECT a.sha256, a.size FROM artifacts a JOIN tasks t USING (task_id)"
        " WHERE a.task_id = ? AND a.name = ? AND t.submitter = ?",
        source.from_task, source.artifact, submitter,
    )  # fmt: skip


def _gpu_uuid(entry: NodeEntry, slot: str) -> list[str]:
    gpus = entry.info.capabilities.gpu if entry.info else None
    if not slot.startswith("gpu") or not isinstance(gpus, list):
        return []
    index = int(slot[3:])
    return [gpus[index].uuid or gpus[index].name] if index < len(gpus) else []


def _nothing(code: str, message: str) -> PollAnswer:
    return PollAnswer(reasons=[Reason(code=code, message=message)])
