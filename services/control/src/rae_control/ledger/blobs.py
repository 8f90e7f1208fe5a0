"""Which blobs each submitter has, and how many bytes of them."""

from __future__ import annotations

from collections.abc import Sequence

from rae_control.ledger.base import Db, Row, Tx, fetch
from rae_control.ledger.schema import BLOB_BYTES, LEAST_BYTES
from rae_protocol.errors import RaeError

# No task of the submitter reads it, and its grace is over.
UNREAD = """created_at < ? AND NOT EXISTS (SELECT 1 FROM task_blobs r JOIN tasks t USING (task_id)
    WHERE r.sha256 = blobs.sha256 AND t.submitter = blobs.submitter)"""


def renew(tx: Tx, sha256: str, submitter: str) -> bool:
    """Its grace starts again; False when the submitter has no such blob."""
    sql = "UPDATE blobs SET created_at = ? WHERE sha256 = ? AND submitter = ?"
    return tx.run(sql, tx.latest, sha256, submitter) > 0


def keep(tx: Tx, sha256: str, submitter: str, size: int, most: int) -> bool:
    """The submitter has it now; whether it is new. Raises RaeError `blobs_full`."""
    if renew(tx, sha256, submitter):
        return False
    refuse_more(tx.db, submitter, size, most)
    tx.run("INSERT INTO blobs VALUES (?, ?, ?, ?)", sha256, submitter, size, tx.latest)
    _count(tx, submitter, max(size, LEAST_BYTES))
    return True


def refuse_more(db: Db, submitter: str, size: int, most: int) -> None:
    """Raises RaeError `blobs_full` when the submitter would have more than `most` bytes."""
    have = stored(db, submitter)
    if have + max(size, LEAST_BYTES) > most:
        cause = f"{have} bytes of blobs are stored, {most} are allowed"
        raise RaeError("blobs_full", cause, retry_after_s=30)


def known(db: Db, sha256: str, submitter: str) -> bool:
    """Whether the submitter has it."""
    sql = "SELECT 1 FROM blobs WHERE sha256 = ? AND submitter = ?"
    return bool(fetch(db, sql, (sha256, submitter)))


def stored(db: Db, submitter: str) -> int:
    """Bytes of the submitter's blobs; small ones count as what they take of the disk."""
    rows = fetch(db, "SELECT bytes FROM stored WHERE submitter = ?", (submitter,))
    return int(rows[0]["bytes"]) if rows else 0


def unread(db: Db, before: float) -> list[tuple[str, str]]:
    """Uploads (sha256, submitter) that no task reads."""
    rows = fetch(db, f"SELECT sha256, submitter FROM blobs WHERE {UNREAD}", (before,))
    return [(row["sha256"], row["submitter"]) for row in rows]


def drop(tx: Tx, blobs: Sequence[tuple[str, str]], before: float) -> None:
    """Remove the rows of blobs that still no task reads; the bytes go with the last such row."""
    for sha256, submitter in blobs:
        for row in tx.rows(
            f"DELETE FROM blobs WHERE sha256 = ? AND submitter = ? AND {UNREAD}"
            f" RETURNING {BLOB_BYTES} AS bytes",
            sha256, submitter, before,
        ):  # fmt: skip
            _count(tx, submitter, -row["bytes"])


def _count(tx: Tx, submitter: str, size: int) -> None:
    tx.run(
        "INSERT INTO stored VALUES (?, ?) ON CONFLICT DO UPDATE SET bytes = bytes + excluded.bytes",
        submitter, size,
    )  # fmt: skip


def uploaded(db: Db, sha256: str, submitter: str) -> Row:
    """`size` and `created_at` of a submitter's blob. Raises RaeError `unknown_blob`."""
    sql = "SELECT size, created_at FROM blobs WHERE sha256 = ? AND submitter = ?"
    found = fetch(db, sql, (sha256, submitter))
    if not found:
        raise RaeError("unknown_blob", sha256[:64])
    return found[0]
