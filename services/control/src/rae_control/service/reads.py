"""Reads of the ledger in the turn of whoever asked."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from rae_control.ledger.base import Db

if TYPE_CHECKING:
    from rae_control.mesh.mesh import Mesh

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Reads:
    """Call it with what reads one snapshot. Raises RaeError `rate_limited`."""

    mesh: Mesh
    who: Hashable

    def __call__(self, function: Callable[[Db], T]) -> T:
        return self.mesh.read(function, self.who)
