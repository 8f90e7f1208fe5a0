"""The nodes as this process knows them: sessions, the last contact, orders not yet delivered.

Everything durable is in the ledger; a restart rebuilds this and grants every online node a full
period before it counts as lost.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from gevent.lock import RLock

from rae_control.core.limits import Bucket, Limit
from rae_control.core.matching import (
    Canonical,
    NodeFacts,
    Program,
    facts_from,
    program_of,
    unmet,
    without_program,
)
from rae_control.ledger.base import Row
from rae_protocol.clock import Clock
from rae_protocol.nodes import Availability, Command, RegisterRequest, Wanted


@dataclass(slots=True)
class NodeEntry:
    """One enrolled node. `last_contact` and `received` are on the boot clock: silence counts from
    `last_contact`, control's start at the earliest; `received` is None until it called after that.
    """

    node_id: str
    kind: str
    trusted: bool
    epoch: int
    revoked: bool
    online: bool
    draining: str | None
    cordoned: str | None
    token_sha256: str | None
    old_token_sha256: str | None
    token_expires: float
    machine: str | None
    instance: str | None
    last_seen: float | None
    info: RegisterRequest | None
    facts: NodeFacts
    last_contact: float
    bucket: Bucket
    registrations: Bucket
    availability: Availability = Availability.OPEN
    reasons: list[str] = field(default_factory=list)
    clock_offset_s: float | None = None
    session_keys: dict[str, bytes] = field(default_factory=dict)
    commands: list[Command] = field(default_factory=list)
    fits: dict[str, bool] = field(default_factory=dict)
    received: float | None = None
    poll: Any = None
    claiming: RLock = field(default_factory=RLock)
    delivering: RLock = field(default_factory=RLock)  # one result at a time

    @property
    def acks(self) -> bool:
        """Whether the node promised to ack; for every other one a poll counts as the ack."""
        return self.info is not None and self.info.ack

    def seen(self, clock: Clock) -> float | None:
        """When it called last, in unix seconds; None: unknown, not since control's start."""
        if not self.online:
            return self.last_seen
        return None if self.received is None else clock.wall() - (clock.boot() - self.received)

    @property
    def wanted(self) -> Wanted:
        """What the operator wants of the node."""
        return "work" if self.draining is None else "drain"

    @property
    def state(self) -> str:
        """One word for people and programs."""
        if self.revoked:
            return "revoked"
        if not self.online:
            return "offline" if self.info is not None else "enrolled"
        if self.cordoned is not None:
            return "cordoned"
        return "draining" if self.draining is not None else "online"

    def fit(self, lane_id: str, requirements: Mapping[str, Any]) -> bool:
        """Whether work of this lane could ever run here; remembered until the node changes."""
        known = self.fits.get(lane_id)
        if known is None:
            if len(self.fits) > 5000:
                self.fits.clear()
            known = self.fits[lane_id] = not unmet(requirements, self.facts)
        return known

    def order(self, command: Command) -> None:
        """Queue an order and wake the poll that is open for it.

        A lost one is made up for: each heartbeat names the wanted state, and leases to stop.
        """
        if command.command != "cancel":
            self.commands = [item for item in self.commands if item.command == "cancel"]
        self.commands.append(command)
        self.wake()

    def wake(self) -> None:
        """Let the node's open poll look again."""
        if self.poll is not None:
            self.poll.wake()

    def take_commands(self) -> list[Command]:
        """The orders to deliver now."""
        taken, self.commands = self.commands, []
        return taken


class NodeTable:
    """All enrolled nodes, and who a token belongs to."""

    def __init__(self, requests: Limit, registrations: Limit) -> None:
        self._entries: dict[str, NodeEntry] = {}
        self._by_token: dict[str, str] = {}
        self._old_tokens: dict[str, str] = {}
        # How many nodes have a command or a Python task; an empty name: they do not say.
        self._programs: Counter[Program] = Counter()
        self._requests, self._registrations = requests, registrations

    def __iter__(self) -> Iterator[NodeEntry]:
        return iter(list(self._entries.values()))

    def get(self, node_id: str) -> NodeEntry | None:
        """An enrolled node."""
        return self._entries.get(node_id)

    def by_token(self, token_sha256: str) -> NodeEntry | None:
        """Whose session this is."""
        node_id = self._by_token.get(token_sha256)
        return None if node_id is None else self._entries.get(node_id)

    def wanted(self, req: Canonical) -> Canonical:
        """The requirement as nodes are held to it.

        Where no node has the command, any node may refuse it and say what there is.
        """
        program = program_of(req)
        if program is None or self._programs[program] or self._programs[program[0], ""]:
            return req
        return without_program(req)

    def another(self, req: Canonical, without: Collection[str], *, now: bool) -> bool:
        """Whether an online node that is not among those fits; `now`: it takes work now."""
        return any(
            entry.node_id not in without
            and entry.online
            and (not now or (entry.state == "online" and entry.availability == Availability.OPEN))
            and not unmet(req, entry.facts)
            for entry in self
        )

    def superseded(self, token_sha256: str) -> str | None:
        """The node where a newer agent took over from the one with this token."""
        return self._old_tokens.get(token_sha256)

    def update(self, row: Row, now_boot: float) -> NodeEntry:
        """Take over a row of the ledger after its commit; keeps what only memory knows."""
        info = RegisterRequest.model_validate_json(row["info"]) if row["info"] else None
        before = self._entries.get(row["node_id"])
        trusted = bool(row["trusted"]) and info is not None and bool(info.trusted)
        caps = info.capabilities if info else RegisterRequest(node_id=row["node_id"]).capabilities
        facts = facts_from(
            row["node_id"], caps, trusted=trusted, slots=info.slots if info else None
        )
        entry = NodeEntry(
            node_id=row["node_id"],
            kind=row["kind"],
            trusted=trusted,
            epoch=row["epoch"],
            revoked=bool(row["revoked"]),
            online=bool(row["online"]),
            draining=row["draining"],
            cordoned=row["cordoned"],
            token_sha256=row["token_sha256"],
            old_token_sha256=row["old_token_sha256"],
            token_expires=row["token_expires"] or 0.0,
            machine=row["machine"],
            instance=row["instance"],
            last_seen=row["last_seen"],
            info=info,
            facts=facts,
            last_contact=now_boot,
            bucket=before.bucket if before else self._requests.bucket(now_boot),
            registrations=before.registrations if before else self._registrations.bucket(now_boot),
        )
        self._count_programs(before, entry)
        if before is not None:
            self._forget_tokens(before)
            entry.poll, entry.claiming = before.poll, before.claiming
            entry.delivering = before.delivering
            if before.token_sha256 == entry.token_sha256:
                entry.last_contact, entry.session_keys = before.last_contact, before.session_keys
                entry.received = before.received
                entry.availability, entry.reasons = before.availability, before.reasons
                entry.clock_offset_s, entry.commands = before.clock_offset_s, before.commands
            elif info is not None:
                entry.availability, entry.received = info.availability, now_boot
        self._entries[entry.node_id] = entry
        if entry.token_sha256:
            self._by_token[entry.token_sha256] = entry.node_id
        if entry.old_token_sha256:
            self._old_tokens[entry.old_token_sha256] = entry.node_id
        return entry

    def _count_programs(self, before: NodeEntry | None, entry: NodeEntry) -> None:
        old, new = (Counter(_programs(one)) for one in (before, entry))
        if old == new:
            return
        self._programs.subtract(old)
        self._programs.update(new)
        self._programs += Counter()  # what is 0 goes
        for one in self:
            one.fits.clear()

    def _forget_tokens(self, entry: NodeEntry) -> None:
        if entry.token_sha256:
            self._by_token.pop(entry.token_sha256, None)
        if entry.old_token_sha256:
            self._old_tokens.pop(entry.old_token_sha256, None)


def _programs(entry: NodeEntry | None) -> list[Program]:
    if entry is None or entry.revoked or entry.info is None:
        return []
    out: list[Program] = []
    for kind, names in (("command", entry.facts.commands), ("task", entry.facts.python_tasks)):
        if names is not None:
            out += [(kind, name) for name in names]
        elif entry.online:
            out.append((kind, ""))
    return out


def info_json(request: RegisterRequest) -> str:
    """What of a registration is kept (the leases it lists are not)."""
    return json.dumps(request.model_dump(mode="json", exclude={"unfinished"}, exclude_none=True))
