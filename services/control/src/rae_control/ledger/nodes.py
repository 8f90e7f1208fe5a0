"""Nodes and tokens in the ledger."""

from __future__ import annotations

import hashlib
import re
import secrets
from collections.abc import Collection
from typing import Any

from rae_control.core.retries import Limits
from rae_control.ledger.base import Row, Tx
from rae_control.ledger.schema import HOLDER, SESSION
from rae_control.ledger.tasks import Who, clear_fence, event, interrupt
from rae_protocol.errors import RaeError
from rae_protocol.names import TOKEN_NAME_PATTERN


def sha256(text: str) -> str:
    """How tokens are stored."""
    return hashlib.sha256(text.encode()).hexdigest()


def get(tx: Tx, node_id: str) -> Row:
    """A node's row. Raises RaeError `unknown_node`."""
    row = tx.row("SELECT * FROM nodes WHERE node_id = ?", node_id)
    if row is None:
        raise RaeError("unknown_node", f"there is no node {node_id}")
    return row


def change(tx: Tx, node_id: str, **columns: Any) -> Row:
    """The one way to change a node's row: memory follows it after the commit."""
    sets = ", ".join(f"{name} = ?" for name in columns)
    tx.run(f"UPDATE nodes SET {sets} WHERE node_id = ?", *columns.values(), node_id)
    row = get(tx, node_id)
    tx.changes.nodes.append(row)
    return row


def enrol(tx: Tx, node_id: str, kind: str, trusted: bool) -> Row:
    """Admit a node. Again: its kind and trust are updated; a revoked one gets a fresh secret."""
    known = tx.row("SELECT * FROM nodes WHERE node_id = ?", node_id)
    if known is None:
        tx.run("INSERT INTO nodes (node_id, kind, trusted, epoch) VALUES (?, ?, ?, 1)",
               node_id, kind, trusted)  # fmt: skip
        event(tx, "enrolled", who=Who(node_id))
        return change(tx, node_id, revoked=0)
    if known["kind"] == kind and bool(known["trusted"]) == trusted and not known["revoked"]:
        return known
    # Changing kind or trust is the operator's word; the session ends so that it takes effect.
    event(tx, "enrolment_changed", who=Who(node_id))
    return change(tx, node_id, kind=kind, trusted=trusted, revoked=0, token_sha256=None, online=0)


def register(
    tx: Tx, node_id: str, *, token_sha256: str, expires: float, machine: str | None,
    instance: str | None, info: str,
) -> Row:  # fmt: skip
    """A node's session starts; the one before is superseded."""
    node = get(tx, node_id)
    if node["revoked"]:
        raise RaeError("node_revoked", f"node {node_id} was revoked")
    # Only an agent that another one replaced must stop; the same agent with a new token goes on.
    replaced = node["token_sha256"] if instance is None or node["instance"] != instance else None
    was = None if node["online"] else "offline"
    event(tx, "registered", who=Who(node_id), old=was, new="online")
    return change(
        tx, node_id, online=1, token_sha256=token_sha256, old_token_sha256=replaced,
        token_expires=expires, machine=machine, instance=instance, info=info, last_seen=tx.now,
    )  # fmt: skip


def offline(tx: Tx, node_id: str, reason: str, last_seen: float) -> None:
    """The node went silent, or said goodbye."""
    if get(tx, node_id)["online"]:
        change(tx, node_id, online=0, last_seen=last_seen)
        event(tx, reason, who=Who(node_id), old="online", new="offline")


def set_draining(tx: Tx, node_id: str, reason: str | None) -> Row:
    """Drain (with a reason) or resume (None); resuming also lifts a cordon."""
    node = get(tx, node_id)
    event(tx, "resumed" if reason is None else "draining", who=Who(node_id), detail=reason)
    if reason is None:
        return change(tx, node_id, draining=None, cordoned=None, infra_in_row=0)
    return change(tx, node_id, draining=node["draining"] or reason)


def revoke(tx: Tx, node_id: str, reason: str | None) -> Row:
    """The node's secret and session end at once (a stolen desktop)."""
    epoch = get(tx, node_id)["epoch"] + 1
    event(tx, "revoked", who=Who(node_id), detail=reason, new="revoked")
    return change(
        tx, node_id, revoked=1, online=0, epoch=epoch, token_sha256=None, old_token_sha256=None
    )


def infrastructure(tx: Tx, node_id: str, failed: str | None, cordon_after: int) -> str | None:
    """Count infrastructure failures in a row; returns the reason when the node is cordoned now."""
    node = get(tx, node_id)
    if failed is None:
        if node["infra_in_row"]:
            change(tx, node_id, infra_in_row=0)
        return None
    in_row = node["infra_in_row"] + 1
    change(tx, node_id, infra_in_row=in_row)
    if in_row < cordon_after or node["cordoned"] is not None:
        return None
    reason = f"{in_row} infrastructure failures in a row, the last: {failed}"
    cordon(tx, node_id, reason)
    return reason


def cordon(tx: Tx, node_id: str, reason: str) -> None:
    """Give the node nothing more, until an operator resumes it."""
    if get(tx, node_id)["cordoned"] is None:
        change(tx, node_id, cordoned=reason)
        event(tx, "cordoned", who=Who(node_id), detail=reason, new="cordoned")


def holder_of(tx: Tx, node_id: str) -> str | None:
    """Where the node's session runs: its machine, or the session itself (schema.py)."""
    row = tx.row(f"SELECT {HOLDER} AS holder FROM nodes WHERE node_id = ?", node_id)
    return None if row is None else row["holder"]


def close_leases(
    tx: Tx, node_id: str, reason: str, limits: Limits, *,
    dead_on: str | None, keep: Collection[str] = (), spare_sessions: bool = False,
    doubted: bool = False,
) -> None:  # fmt: skip
    """End the node's open leases. Work on the machine `dead_on` has ended, but for those to keep.

    What runs on another machine may be alive, so it is fenced: the task waits as long as that lease
    could last. So is all of it where two machines are `doubted` to be one. `spare_sessions` leaves
    the leases of clients that name no machine open.
    """
    for task in tx.rows(
        "SELECT t.lease_id, a.machine FROM tasks t JOIN attempts a USING (lease_id)"
        " WHERE t.node_id = ? AND t.lease_id IS NOT NULL",
        node_id,
    ):
        dead = dead_on is not None and task["machine"] == dead_on
        if dead and task["lease_id"] in keep:
            continue
        if spare_sessions and str(task["machine"]).startswith(SESSION):
            continue
        why = reason if dead or dead_on is None else "machine_changed"
        interrupt(tx, task["lease_id"], why, limits, fenced=doubted or not dead)


def clear_fences_of(tx: Tx, node_id: str, machine: str, keep: Collection[str] = ()) -> None:
    """Everything that the node ever ran on this machine is dead."""
    for row in tx.rows(
        "SELECT t.fence FROM tasks t JOIN attempts a ON a.lease_id = t.fence"
        " WHERE a.node_id = ? AND a.machine = ?",
        node_id, machine,
    ):  # fmt: skip
        if row["fence"] not in keep:
            clear_fence(tx, row["fence"])


def _check_name(name: str) -> None:
    # The last door, whoever brings it: it becomes a submitter's, a lane's and a queue's.
    if not re.fullmatch(TOKEN_NAME_PATTERN.removesuffix("$"), name):
        cause = f"a token's name matches {TOKEN_NAME_PATTERN}, and {name[:50]!r} does not"
        raise RaeError("invalid_body", cause)


def add_token(tx: Tx, name: str, role: str, text: str | None = None) -> tuple[Row, str]:
    """Make a token; returns its row and its text.

    Raises RaeError `invalid_body`, `token_exists`.
    """
    _check_name(name)
    if tx.row("SELECT 1 FROM tokens WHERE name = ? AND revoked_at IS NULL", name):
        raise RaeError("token_exists", f"there is a live token named {name}")
    text = text or f"rae_{secrets.token_urlsafe(32)}"
    token_id = secrets.token_hex(6)
    tx.run(
        "INSERT INTO tokens (token_id, name, role, sha256, created_at) VALUES (?, ?, ?, ?, ?)",
        token_id, name, role, sha256(text), tx.now,
    )  # fmt: skip
    row = tx.rows("SELECT * FROM tokens WHERE token_id = ?", token_id)[0]
    tx.changes.tokens.append(row)
    return row, text


def keep_token(tx: Tx, name: str, role: str, text: str) -> None:
    """Make sure that this token, and no other, has the name. Raises RaeError `invalid_body`."""
    _check_name(name)
    digest = sha256(text)
    tx.run(
        "UPDATE tokens SET revoked_at = ? WHERE name = ? AND sha256 != ? AND revoked_at IS NULL",
        tx.now, name, digest,
    )  # fmt: skip
    known = tx.row("SELECT name, role, revoked_at FROM tokens WHERE sha256 = ?", digest)
    if known is None:
        add_token(tx, name, role, text)
    elif known != {"name": name, "role": role, "revoked_at": None}:
        tx.run(
            "UPDATE tokens SET name = ?, role = ?, revoked_at = NULL WHERE sha256 = ?",
            name, role, digest,
        )  # fmt: skip


def revoke_token(tx: Tx, name_or_id: str) -> Row:
    """End a token, by id or by the name of the live one. Raises RaeError `unknown_token`."""
    row = tx.row(
        "SELECT * FROM tokens WHERE token_id = ? OR name = ?"
        " ORDER BY token_id = ? DESC, revoked_at IS NULL DESC LIMIT 1",
        name_or_id, name_or_id, name_or_id,
    )  # fmt: skip
    if row is None:
        raise RaeError("unknown_token", f"there is no token {name_or_id}")
    if row["revoked_at"] is None:
        tx.run("UPDATE tokens SET revoked_at = ? WHERE token_id = ?", tx.now, row["token_id"])
        row["revoked_at"] = tx.now
        tx.changes.tokens.append(row)
    return row
