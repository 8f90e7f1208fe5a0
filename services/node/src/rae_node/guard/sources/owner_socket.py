"""Whether the owner can reach the agent: a machine that he cannot take back is not lent."""

from __future__ import annotations

from collections.abc import Callable

from rae_node.guard.policy import Reading


class OwnerSocketSource:
    """Blind while the owner's socket does not serve. `keep_open` repairs it, or raises."""

    name = "owner_socket"

    def __init__(self, keep_open: Callable[[], None]) -> None:
        self._keep_open = keep_open

    def read(self) -> Reading:
        """Look at the socket, and ask the agent through it. Raises NodeError."""
        self._keep_open()
        return Reading(self.name)
