"""The hold after a restore, as the ledger keeps it: a restart of control does not lift it."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from rae_control.core.hold import Hold, Place, elapsed, merged
from rae_control.ledger.base import Db, Tx, fetch
from rae_control.ledger.schema import HOLDER, HOLDERS_SINCE, SESSION
from rae_control.ledger.sqlite import CLOCK

KEY, LINEAGE = "hold", "lineage"
# Where work may be alive: sessions, and attempts that are open or fenced.
_PLACES = f"""SELECT node_id, {HOLDER} AS machine FROM nodes WHERE online = 1
    UNION SELECT a.node_id, a.machine FROM attempts a WHERE a.ended_at IS NULL
    UNION SELECT a.node_id, a.machine FROM tasks t JOIN attempts a ON a.lease_id = t.fence"""


@dataclass(frozen=True, slots=True)
class Past:
    """What a ledger knows of the work that it gave out.

    `places`: where it may be alive, None when that is not known; `longest_s`: its longest lease;
    `lineage`: its incarnation and those before it; `last_event`: how far its history goes.
    """

    places: set[Place] | None
    longest_s: float
    lineage: tuple[str, ...]
    last_event: int


def past(db: Db) -> Past:
    """Read a ledger, of whatever version."""
    longest = fetch(db, "SELECT coalesce(max(lease_ttl_s), 0) AS s FROM tasks")[0]["s"]
    lineage = (*json.loads(_meta(db, LINEAGE) or "[]"), str(_meta(db, "incarnation")))
    places: set[Place] | None = None
    if fetch(db, "PRAGMA user_version")[0]["user_version"] >= HOLDERS_SINCE:
        rows = fetch(db, _PLACES)
        # Who named no machine cannot confirm.
        if all(row["machine"] and not row["machine"].startswith(SESSION) for row in rows):
            places = {(row["node_id"], row["machine"]) for row in rows}
    stored = _stored(db)
    if stored is not None:  # an earlier restore, whose hold may not be over
        places = merged((places, _places(stored["waits_for"])))
        longest = max(longest, stored["seconds"])
    last = fetch(db, "SELECT seq FROM sqlite_sequence WHERE name = 'events'")
    return Past(places, longest, lineage, last[0]["seq"] if last else 0)


def begin(tx: Tx, incarnation: str, boot: float | None, mine: Past, replaced: Past | None) -> None:
    """Give a restored ledger its new incarnation, and a hold that begins at `boot` (None: no hold).

    `replaced`: what the ledger that was there knows, None if it could not be read.
    """
    # A ledger with another past, or one that ends before the backup, such as an old copy, knows
    # nothing of what followed the backup.
    follows = (
        replaced is not None
        and mine.lineage[-1] in replaced.lineage
        and replaced.last_event >= mine.last_event
    )
    sides = [mine.places, replaced.places if replaced is not None and follows else None]
    waits_for, longest = merged(sides), mine.longest_s
    lineage = list(mine.lineage)
    if replaced is not None:
        longest = max(longest, replaced.longest_s)
        lineage += [name for name in replaced.lineage if name not in lineage]
    # What the clocks said when the backup was written says nothing of this machine now.
    tx.run("DELETE FROM meta WHERE key = ?", CLOCK)
    if boot is None:
        end(tx)
    else:
        places = None if waits_for is None else sorted(waits_for)
        keep(tx, {"seconds": longest, "elapsed": 0.0, "wall": tx.now, "boot": boot,
                  "waits_for": places})  # fmt: skip
    for key, value in (("incarnation", incarnation), (LINEAGE, json.dumps(lineage))):
        tx.run("INSERT OR REPLACE INTO meta VALUES (?, ?)", key, value)


def resume(
    db: Db, wall: float, boot: float, longest_s: float
) -> tuple[Hold, dict[str, Any]] | None:
    """The hold when control starts, and what to `keep` of it; None when there is none.

    `longest_s`: the longest lease that control ever allows.
    """
    stored = _stored(db)
    if stored is None:
        return None
    fresh = moved_on({**stored, "seconds": max(stored["seconds"], longest_s)}, wall, boot)
    left = max(0.0, fresh["seconds"] - fresh["elapsed"])
    return Hold(boot + left, _places(stored["waits_for"])), fresh


def moved_on(stored: dict[str, Any], wall: float, boot: float) -> dict[str, Any]:
    """What to `keep` now that time has passed, or a reboot would begin it anew."""
    passed = elapsed((stored["wall"], stored["boot"]), (wall, boot))
    return {**stored, "elapsed": stored["elapsed"] + passed, "wall": wall, "boot": boot}


def keep(tx: Tx, hold: dict[str, Any]) -> None:
    """Write it down."""
    tx.run("INSERT OR REPLACE INTO meta VALUES (?, ?)", KEY, json.dumps(hold))


def end(tx: Tx) -> bool:
    """Lift the hold; whether there was one."""
    return tx.run("DELETE FROM meta WHERE key = ?", KEY) > 0


def _places(stored: list[list[str]] | None) -> set[Place] | None:
    return None if stored is None else {(node_id, machine) for node_id, machine in stored}


def _stored(db: Db) -> dict[str, Any] | None:
    text = _meta(db, KEY)
    return None if text is None else dict(json.loads(text))


def _meta(db: Db, key: str) -> str | None:
    rows = fetch(db, "SELECT value FROM meta WHERE key = ?", (key,))
    return str(rows[0]["value"]) if rows else None
