"""Ways into a running agent, which the composition root brings: the agent does not know them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rae_node.agent.agent import Agent


class Door(Protocol):
    """It listens from its making on, answers from `start` on."""

    def start(self) -> None: ...
    def close(self) -> None: ...


class OwnerDoor(Door, Protocol):
    """The owner's: no task runs while `keep_open` raises NodeError."""

    def keep_open(self) -> None: ...


@dataclass(frozen=True, slots=True)
class Doors:
    """Make the doors of an agent; the monitor's is None where it is off, or its port is taken."""

    owner: Callable[[Agent], OwnerDoor]
    monitor: Callable[[Agent], Door | None]
