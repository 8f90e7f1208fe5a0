"""What every backend of the ledger offers, and the types that its operations share.

An operation is a function of a `Tx` (it may write) or of a `Db` (it reads one snapshot), in one of
the modules beside this one. `Store` runs them. Only the backend (`sqlite.py`) opens connections.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Generic, Protocol, TypeVar

from rae_control.core.steady import SteadyClock
from rae_protocol.errors import RaeError

T = TypeVar("T")
Row = dict[str, Any]
# The writer is held for this long at most by work in pieces; what is left comes in the next one.
BATCH_S = 0.01


class Cursor(Protocol):
    """The rows of a statement, one after the other."""

    @property
    def get(self) -> Any:
        """The only value of the only row; None without a row."""

    def __iter__(self) -> Iterator[Any]: ...

    def fetchone(self) -> Any | None:
        """The next row."""

    def get_description(self) -> Sequence[Sequence[Any]]:
        """The columns, each with its name first."""


class Db(Protocol):
    """A connection, within a transaction."""

    def execute(self, statements: str, bindings: Sequence[Any] | None = None, /) -> Cursor:
        """Run a statement; `?` stand for `bindings`."""

    def changes(self) -> int:
        """The number of rows that the last statement changed."""

    def last_insert_rowid(self) -> int:
        """The number of the row inserted last."""

    def blob_open(
        self, database: str, table: str, column: str, rowid: int, writeable: bool, /
    ) -> AbstractContextManager[Any]:
        """A column of a row as a file, without reading it whole."""


@dataclass(frozen=True, slots=True)
class Moved:
    """A task changed its state: what memory and queue must learn after the commit.

    `task` is the row as it is now; lease, node and slot are those of the attempt that began, goes
    on or has just ended. `event` is the line of history. `lane_before`: a task that a node denied
    changes its lane. `lane_oldest` is the head of the lane, when a task left it.
    """

    task: Row
    old: str | None
    new: str
    lease_id: str | None
    node_id: str | None
    slot: str | None
    event: int
    lane_before: str
    lane_oldest: int | None = None
    requirements: str = "{}"


@dataclass(frozen=True, slots=True)
class Changes:
    """What memory follows after the commit: moved tasks, rows of nodes and tokens, ended fences,
    and whose tasks have new events (None: nodes).

    Rows are as the transaction left them. Only so memory takes them over in the order of the
    commits, however late a caller goes on.
    """

    moved: list[Moved] = field(default_factory=list)
    nodes: list[Row] = field(default_factory=list)
    tokens: list[Row] = field(default_factory=list)
    unfenced: list[str] = field(default_factory=list)
    events: set[str | None] = field(default_factory=set)

    def extend(self, later: Changes) -> None:
        """Add what a later function changed."""
        self.moved.extend(later.moved)
        self.nodes.extend(later.nodes)
        self.tokens.extend(later.tokens)
        self.unfenced.extend(later.unfenced)
        self.events.update(later.events)


@dataclass(slots=True)
class Tx:
    """A transaction in the writer thread: the connection, the time, and what it changed.

    `now` is for people. What becomes due goes by `earliest`, what ages is stamped with `latest`
    (core/steady.py).
    """

    db: Db
    now: float
    earliest: float
    latest: float
    batch: Changes  # of the functions before this one in the same transaction
    in_time: Callable[[], bool]  # whether the transaction is still a short one for all who wait
    changes: Changes = field(default_factory=Changes)
    releasing: bool = False

    def run(self, sql: str, *values: Any) -> int:
        """Execute and return the number of changed rows."""
        self.db.execute(sql, values)
        return self.db.changes()

    def insert(self, table: str, rows: Sequence[Row]) -> Sequence[int]:
        """Insert rows of the same columns with one statement; returns their numbers.

        Between two statements another thread may take the interpreter, for a while each time.
        """
        if not rows:
            return ()
        columns = ", ".join(rows[0])
        values = ", ".join(f"v ->> {at}" for at in range(len(rows[0])))
        self.db.execute(
            f"INSERT INTO {table} ({columns}) SELECT {values}"
            " FROM (SELECT value AS v FROM json_each(?) ORDER BY key)",
            (json.dumps([list(row.values()) for row in rows]),),
        )
        last = self.db.last_insert_rowid()
        return range(last - len(rows) + 1, last + 1)

    def rows(self, sql: str, *values: Any) -> list[Row]:
        """All rows as dictionaries."""
        return fetch(self.db, sql, values)

    def row(self, sql: str, *values: Any) -> Row | None:
        """The first row, or None."""
        found = fetch(self.db, sql, values)
        return found[0] if found else None


@dataclass(frozen=True, slots=True)
class Outcome(Generic[T]):
    """What one function of a batch returned or raised."""

    value: T | None = None
    error: BaseException | None = None


class Store(Protocol):
    """A backend: one writer, several readers, one process. Batches survive a power cut."""

    steady: SteadyClock
    incarnation: str

    def transact(
        self, functions: Sequence[Callable[[Tx], Any]], most_s: float = ...
    ) -> tuple[list[Outcome[Any]], Changes]:
        """Run a batch in one durable transaction; a function that raises is rolled back alone."""

    def read(self, function: Callable[[Any], T]) -> T:
        """Run a reading function on a connection of its own, in one snapshot."""

    def meta(self, key: str) -> str:
        """A value of the ledger itself."""

    def earliest(self) -> float:
        """It is at least so late, in unix seconds."""

    def close(self) -> None:
        """Let another process in."""


def unavailable(outcomes: Sequence[Outcome[Any]]) -> RaeError | None:
    """The error of a batch that SQLite could not commit; None when it could."""
    error = outcomes[0].error if outcomes else None
    if isinstance(error, RaeError) and error.rc == "ledger_unavailable":
        return error
    return None


def fetch(db: Db, sql: str, values: Sequence[Any] = ()) -> list[Row]:
    """Rows as dictionaries."""
    return list(streamed(db, sql, values))


def streamed(db: Db, sql: str, values: Sequence[Any] = ()) -> Iterator[Row]:
    """The same, one after the other: who has enough stops."""
    cursor = db.execute(sql, tuple(values))
    names: tuple[str, ...] = ()
    for row in cursor:
        if not names:
            names = tuple(column[0] for column in cursor.get_description())
        yield dict(zip(names, row, strict=True))
