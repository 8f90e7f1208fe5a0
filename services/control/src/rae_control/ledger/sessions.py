"""The begin and the end of a node's session, with what they mean for its leases."""

from __future__ import annotations

from rae_control.core.retries import SHARED_MACHINE, Limits
from rae_control.ledger import nodes as ledger_nodes
from rae_control.ledger.base import Row, Tx
from rae_protocol import models


def begin(
    tx: Tx, request: models.RegisterRequest, info: str, token: str, expires_in: float,
    limits: Limits,
    *, doubted: bool,
) -> Row:  # fmt: skip
    """A registration: its node's row. `token`: the new session's; `expires_in` seconds."""
    row = ledger_nodes.register(
        tx, request.node_id, token_sha256=ledger_nodes.sha256(token), expires=tx.now + expires_in,
        machine=request.machine, instance=request.instance, info=info,
    )  # fmt: skip
    # On the same machine every process of an earlier agent is dead by now, except what it lists.
    # A client that names no machine proves nothing: its open leases run out by themselves. Neither
    # does one of two machines that seem to have the same name.
    node_id, machine = request.node_id, request.machine
    alive = {ref.lease_id for ref in request.unfinished}
    ledger_nodes.close_leases(
        tx, node_id, SHARED_MACHINE if doubted else "node_restarted", limits,
        dead_on=machine or ledger_nodes.holder_of(tx, node_id), keep=alive,
        spare_sessions=machine is None, doubted=doubted,
    )  # fmt: skip
    if machine is not None and not doubted:
        ledger_nodes.clear_fences_of(tx, node_id, machine, keep=alive)
    return row


def end(tx: Tx, node_id: str, token_sha256: str | None, limits: Limits, seen: float) -> bool:
    """False when a newer session began meanwhile, maybe on another machine."""
    row = ledger_nodes.get(tx, node_id)
    if row["token_sha256"] != token_sha256:
        return False
    holder = ledger_nodes.holder_of(tx, node_id)
    if holder is not None:
        ledger_nodes.close_leases(tx, node_id, "goodbye", limits, dead_on=holder)
        ledger_nodes.clear_fences_of(tx, node_id, holder)
    ledger_nodes.offline(tx, node_id, "goodbye", seen)
    return True
