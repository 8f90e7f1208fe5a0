"""Cordons a node as which two agents take turns (core/takeovers.py)."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rae_control.auth.authenticator import Superseded
from rae_control.core.takeovers import is_about_two, sentence
from rae_control.ledger.base import Row
from rae_protocol.errors import RaeError

if TYPE_CHECKING:
    from rae_control.mesh.mesh import Mesh


def called(mesh: Mesh, error: Superseded, address: str | None) -> RaeError:
    """A replaced session was used; returns the answer to it.

    A call that was signed before the newer agent registered was on its way then: it says nothing.
    """
    node = mesh.nodes.get(error.node_id)
    began = 0 if node is None or node.last_seen is None else int(node.last_seen)
    if error.stamp is None or error.stamp >= began:
        now = mesh.clock.boot()
        both = mesh.takeovers.called(error.node_id, error.session, str(address), now)
        _cordon(mesh, error.node_id, both)
        node = mesh.nodes.get(error.node_id)
    if node is not None and is_about_two(node.cordoned):
        return RaeError("superseded", node.cordoned)
    return error


def registered(mesh: Mesh, row: Row, address: str | None) -> None:
    """A registration was committed; `row` is its node."""
    both = mesh.takeovers.registered(
        row["node_id"], row["machine"], row["instance"], row["old_token_sha256"], str(address),
        mesh.clock.boot(),
    )  # fmt: skip
    _cordon(mesh, row["node_id"], both)


def _cordon(mesh: Mesh, node_id: str, both: tuple[str, str] | None) -> None:
    if both is not None:
        mesh.cordon(node_id, sentence(both))
