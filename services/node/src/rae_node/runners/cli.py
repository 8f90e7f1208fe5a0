"""`cli`: a program on the allow-list, never a shell."""

from __future__ import annotations

from pydantic import Field

from rae_node.runners.allowlist import AllowList
from rae_node.runners.base import Params, Plan, parse_params
from rae_node.workspace import Workspace
from rae_protocol.models import LeasedTask


class CliParams(Params):
    """`{"command": "sha256sum", "args": ["a.txt"]}`."""

    command: str
    args: list[str] = Field(default_factory=list, max_length=1000)


class CliRunner:
    """Runs what the owner's and the shipped allow-lists let through."""

    kind = "cli"

    def __init__(self, allowed: AllowList) -> None:
        self._allowed = allowed

    def plan(self, task: LeasedTask, workspace: Workspace) -> Plan:
        """The command with its caps. Raises TaskFailure E_INVALID, E_DENY."""
        params = parse_params(CliParams, task)
        found = self._allowed.check(params.command, params.args)
        return Plan(
            found.argv,
            "stdio",
            found.entry.max_runtime_s,
            f"max_runtime_s of {found.entry.name}",
            found.entry.max_output_mb,
        )
