"""Two machines from one disk image: each takes the other's node over, again and again.

They have the same machine id, so each registration counts as proof that the other's work is dead.
An agent that is started again looks the same, but for this: the one before never comes back. Here
it is noted when it does, in one of two ways:

- it *called*: a session that was replaced on the same machine was used once more. Our agents end
  then, and come back from systemd under a new instance;
- it *returned*: an instance that had been replaced registers once more.

Once may be a request that was long on its way; twice within the window are two agents.
"""

from __future__ import annotations

from dataclasses import dataclass, field

WINDOW_S = 600.0
ENOUGH = 2


@dataclass(slots=True)
class _History:
    """What is known of a node's present machine; times on the boot clock."""

    machine: str
    instance: str
    address: str
    replaced: dict[str, float] = field(default_factory=dict)
    session: str | None = None  # the latest one that was replaced
    called: dict[str, float] = field(default_factory=dict)
    returned: dict[str, float] = field(default_factory=dict)


class Takeovers:
    """Notes who took over from whom; in memory: a restart of control begins anew.

    Agents that name no machine or no instance are left out: their registrations prove nothing.
    """

    def __init__(self) -> None:
        self._nodes: dict[str, _History] = {}

    def suspects(self, node_id: str, machine: str | None, instance: str | None, now: float) -> bool:
        """Whether a registration that comes now may be of one of two living agents."""
        known = self._nodes.get(node_id)
        if known is None or machine != known.machine or instance in {None, known.instance}:
            return False
        _drop_old(known, now)
        return bool(known.called or known.returned or instance in known.replaced)

    def registered(
        self, node_id: str, machine: str | None, instance: str | None, session: str | None,
        address: str, now: float,
    ) -> tuple[str, str] | None:  # fmt: skip
        """A registration was taken; `session` is the one that it replaced.

        Returns both addresses once it is clear that there are two agents.
        """
        if machine is None or instance is None:
            self._nodes.pop(node_id, None)
            return None
        known = self._nodes.get(node_id)
        if known is None or known.machine != machine:
            self._nodes[node_id] = _History(machine, instance, address)
            return None
        if instance == known.instance:
            known.address = address
            return None
        _drop_old(known, now)
        if instance in known.replaced:
            known.returned[instance] = now
        known.replaced[known.instance] = now
        before, known.address = known.address, address
        known.instance, known.session = instance, session
        return self._both(node_id, known, before)

    def called(
        self, node_id: str, session: str, address: str, now: float
    ) -> tuple[str, str] | None:
        """A session was used that another agent has replaced. Returns as `registered`."""
        known = self._nodes.get(node_id)
        if known is None or known.session != session:
            return None
        _drop_old(known, now)
        known.called[session] = now
        return self._both(node_id, known, address)

    def _both(self, node_id: str, known: _History, other: str) -> tuple[str, str] | None:
        if max(len(known.called), len(known.returned)) < ENOUGH:
            return None
        del self._nodes[node_id]  # once it is resumed, it takes new evidence
        return known.address, other


def _drop_old(known: _History, now: float) -> None:
    for noted in (known.replaced, known.called, known.returned):
        for name in [name for name, at in noted.items() if now - at > WINDOW_S]:
            del noted[name]


_TWO = "two agents with one machine id take turns as this node"


def sentence(addresses: tuple[str, str]) -> str:
    """Why such a node is cordoned, and the way out."""
    here, there = addresses
    where = f"both from {here}" if here == there else f"from {here} and {there}"
    return (
        f"{_TWO}, {where}: on one of them run `rm /etc/machine-id && systemd-machine-id-setup`"
        " and enrol it under a name of its own, then `raectl nodes resume` this one"
    )


def is_about_two(cordoned: str | None) -> bool:
    """Whether a node is cordoned for that."""
    return cordoned is not None and cordoned.startswith(_TWO)
