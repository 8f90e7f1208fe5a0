"""Which signed requests were seen, so that none is taken twice; bounded for each key id.

A nonce is kept by its request's stamp. Nonces outlive the window in which a stamp is taken, so that
a wall clock that is set back a little brings none of them round again.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass, field

KEEP_S = 600.0
MOST = 16_384


@dataclass(slots=True)
class _Seen:
    """The nonces of one key id by stamp; `stamps` is a heap. Up to `let_go` some were dropped."""

    nonces: dict[int, set[str]] = field(default_factory=dict)
    stamps: list[int] = field(default_factory=list)
    count: int = 0
    let_go: float = float("-inf")

    def drop_oldest(self) -> int:
        stamp = heapq.heappop(self.stamps)
        self.count -= len(self.nonces.pop(stamp))
        return stamp

    def drop_beyond(self, latest: float) -> None:
        for stamp in [stamp for stamp in self.stamps if stamp > latest]:
            self.count -= len(self.nonces.pop(stamp))
        self.stamps = list(self.nonces)
        heapq.heapify(self.stamps)


class NonceCache:
    """Nonces whose stamp is at most `keep_s` old, `most` of each key id.

    A key id that has sent more loses its oldest ones, and then `knows` refuses stamps so old: a
    flood costs its sender the right to be late, and no memory.
    """

    def __init__(self, keep_s: float = KEEP_S, most: int = MOST) -> None:
        self._keep, self._most = keep_s, most
        self._seen: dict[str, _Seen] = {}

    def __len__(self) -> int:
        """How many are kept."""
        return sum(seen.count for seen in self._seen.values())

    def knows(self, keyid: str, stamp: int, now: float) -> bool:
        """Whether every nonce of this stamp is still known; else a copy would look the same."""
        seen = self._seen.get(keyid)
        # A stamp far ahead is from before the clock was set back: it says nothing about now.
        return seen is None or stamp > seen.let_go or seen.let_go > now + self._keep

    def add(self, keyid: str, stamp: int, nonce: str, now: float) -> bool:
        """Remember a nonce; False when it was there already."""
        seen = self._seen.setdefault(keyid, _Seen())
        while seen.stamps and seen.stamps[0] < now - self._keep:
            seen.drop_oldest()
        if stamp not in seen.nonces:
            seen.nonces[stamp] = set()
            heapq.heappush(seen.stamps, stamp)
        same = seen.nonces[stamp]
        if nonce in same:
            return False
        same.add(nonce)
        seen.count += 1
        if seen.count > self._most:
            seen.drop_beyond(now + self._keep)
        while seen.count > self._most:
            seen.let_go = max(seen.let_go, seen.drop_oldest())
        return True
