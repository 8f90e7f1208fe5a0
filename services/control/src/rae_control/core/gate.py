"""How many connections strangers get, by address, and each known caller; and how many requests.

A request with a known token is never charged to its address: strangers may share that. So the head
of each request is read before anything is refused; how many connections wait for theirs is bounded.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field

from rae_control.core.limits import Bucket

# Requests of an address without a known token: within a second, and at once. Signed registrations
# count apart, for only their bodies show whether they are a node's.
RATE, BURST = 20.0, 400.0
# Connections that have shown none yet: of one address, and of all. Never more than a quarter and
# half of what there may be at once, where the system allows few open files.
OF_ONE, OF_ALL = 256, 1024
# Connections of one caller, whose tokens they showed: more than a large submitter's long polls; and
# never more than half.
OF_A_CALLER = 2000
# Addresses that are remembered; who comes back after so many others starts afresh.
ADDRESSES = 4096


@dataclass(slots=True, eq=False)
class Visit:
    """A connection. `known`: a request on it had a known token, or registered a node."""

    address: str
    hang_up: Callable[[], None]
    _gate: Gate | None = None
    caller: str | None = None

    @property
    def known(self) -> bool:
        """Whether it has shown a known token."""
        return self.caller is not None

    def recognise(self, caller: str) -> None:
        """It is no stranger's, but this caller's."""
        if not self.known:
            self.caller = caller
            if self._gate is not None:
                self._gate.recognised(self)

    def ask(self, *, registers: bool = False) -> float:
        """A request without a known token comes: 0 when it may, else the seconds to wait."""
        return 0.0 if self._gate is None else self._gate.take(self.address, registers=registers)

    def registered(self, caller: str) -> None:
        """Its registration was a node's: what that took is given back."""
        if self._gate is not None:
            self._gate.give_back(self.address)
        self.recognise(caller)


@dataclass(slots=True)
class Gate:
    """All connections, by address or by caller. For one thread; `now` is a steady clock.

    `most`: how many connections there may be at once.
    """

    now: Callable[[], float]
    most: int
    _buckets: OrderedDict[tuple[str, bool], Bucket] = field(default_factory=OrderedDict)
    _strangers: OrderedDict[Visit, None] = field(default_factory=OrderedDict)
    _of: dict[str, OrderedDict[Visit, None]] = field(default_factory=dict)
    _known: dict[str, OrderedDict[Visit, None]] = field(default_factory=dict)

    def enter(self, address: str, hang_up: Callable[[], None]) -> Visit:
        """A connection comes.

        Where too many have shown nothing, the oldest of them goes: who has something to show does
        so at once.
        """
        visit = Visit(address, hang_up, self)
        mine = self._of.setdefault(address, OrderedDict())
        self._strangers[visit] = mine[visit] = None
        of_one, of_all = min(OF_ONE, self.most // 4), min(OF_ALL, self.most // 2)
        for group, most in ((mine, of_one), (self._strangers, of_all)):
            if len(group) > most:
                oldest = next(iter(group))
                self._forget(oldest)
                oldest.hang_up()
        return visit

    def leave(self, visit: Visit) -> None:
        """The connection is over."""
        self._forget(visit)
        mine = self._known.get(visit.caller or "")
        if mine is not None:
            mine.pop(visit, None)
            if not mine:
                del self._known[visit.caller or ""]

    def recognised(self, visit: Visit) -> None:
        """The connection is no stranger's. Of too many of one caller the oldest ends."""
        self._forget(visit)
        mine = self._known.setdefault(visit.caller or "", OrderedDict())
        mine[visit] = None
        if len(mine) > min(OF_A_CALLER, self.most // 2):
            oldest = next(iter(mine))
            del mine[oldest]
            oldest.hang_up()

    def give_back(self, address: str) -> None:
        """A registration of this address was a node's."""
        bucket = self._buckets.get((address, True))
        if bucket is not None:
            bucket.level = min(bucket.burst, bucket.level + 1)

    def take(self, address: str, *, registers: bool = False) -> float:
        """0 when one more stranger's request of this address may pass, else seconds to wait."""
        now, key = self.now(), (address, registers)
        bucket = self._buckets.pop(key, None) or Bucket(RATE, BURST, BURST, now)
        self._buckets[key] = bucket
        if len(self._buckets) > ADDRESSES:
            self._buckets.popitem(last=False)
        return bucket.take(now)

    def _forget(self, visit: Visit) -> None:
        self._strangers.pop(visit, None)
        mine = self._of.get(visit.address)
        if mine is not None:
            mine.pop(visit, None)
            if not mine:
                del self._of[visit.address]


@dataclass(slots=True)
class Budget:
    """Bytes of bodies that may be held at once: for each caller, and for all."""

    each: int
    total: int
    _held: dict[Hashable, int] = field(default_factory=dict)
    _all: int = 0

    def take(self, who: Hashable, size: int) -> bool:
        """Whether there is room for a body; it is held until `give`."""
        mine = self._held.get(who, 0) + size
        if mine > self.each or self._all + size > self.total:
            return False
        self._held[who] = mine
        self._all += size
        return True

    def give(self, who: Hashable, size: int) -> None:
        """A body is not held any more."""
        self._all -= size
        self._held[who] -= size
        if not self._held[who]:
            del self._held[who]
