"""`cli`: a program on the allow-list (C5), never a shell."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from rae_node.errors import ConfigError, TaskFailure, first_problem, listed
from rae_node.runners.base import Params, Plan, parse_params
from rae_node.workspace import Workspace
from rae_node.yamlfile import read_yaml
from rae_protocol.models import LeasedTask

_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]*:")
_UNPRINTABLE = re.compile(r"[\x00-\x08\x0a-\x1f\x7f]")


class Entry(BaseModel):
    """One program. `args`: each item matches one argument, or two that belong together."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    path: Annotated[str, Field(pattern=r"^/[^\x00]+$")]
    args: list[Annotated[list[str], Field(min_length=1, max_length=2)]] = Field(
        default_factory=list
    )
    max_total_args_len: Annotated[int, Field(gt=0)] = 4096
    max_runtime_s: Annotated[float, Field(gt=0)] = 3600
    max_output_mb: Annotated[float, Field(gt=0)] = 1024

    @field_validator("args")
    @classmethod
    def _readable(cls, value: list[list[str]]) -> list[list[str]]:
        for text in (text for item in value for text in item):
            try:
                re.compile(text)
            except re.error as error:
                raise ValueError(f"'{text}' is no regular expression: {error}") from error
        return value

    @property
    def name(self) -> str:
        """What a bare command selects it by."""
        return Path(self.path).name


class AllowList:
    """All entries of a node; those whose program is not installed are not offered."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self._entries = tuple(entries)

    def offered(self) -> list[str]:
        """Names of the programs that are there."""
        return sorted({entry.name for entry in self._entries if Path(entry.path).is_file()})

    def missing(self) -> list[str]:
        """Names that are allowed but not installed."""
        return sorted({entry.name for entry in self._entries} - set(self.offered()))

    def check(self, command: str, args: Sequence[str]) -> Entry:
        """The entry that lets it run. Raises TaskFailure E_DENY saying which argument failed."""
        entries = [
            entry
            for entry in self._entries
            if command in {entry.name, entry.path} and Path(entry.path).is_file()
        ]
        if not entries:
            raise TaskFailure(
                "E_DENY",
                f"'{command[:100]}' is not on this node's allow-list; "
                f"choose from {listed(self.offered(), limit=60)}",
            )
        for number, arg in enumerate(args, start=1):
            if why := leaves_workspace(arg):
                text = f"Argument {number} of {command}, '{arg[:100]}', {why}"
                raise TaskFailure("E_DENY", f"{text}; name files relative to the workspace")
        problem = ""
        for entry in entries:
            problem = _refusal(entry, args) or ""
            if not problem:
                return entry
        raise TaskFailure("E_DENY", problem)


def leaves_workspace(arg: str) -> str | None:
    """Why an argument could reach beyond the workspace, whatever a pattern says; None if not."""
    if _UNPRINTABLE.search(arg):
        return "holds a control character"
    values = [arg]
    at = arg.find("=")
    while at >= 0:
        values.append(arg[at + 1 :])
        at = arg.find("=", at + 1)
    option = arg.partition("=")[0]
    if arg.startswith("-") and ("/" in option or "~" in option):
        return "is an option with a path in it"
    for value in values:
        if value.startswith("/"):
            return "is an absolute path"
        if value.startswith("~"):
            return "names a home folder"
        if ".." in value.split("/"):
            return "leaves the workspace"
        if _SCHEME.match(value):
            return "is a URL or names a protocol"
    return None


def first_unmatched(patterns: Sequence[Sequence[str]], args: Sequence[str]) -> int | None:
    """Index of the first argument that no reading of the patterns gets past; None if all match."""
    reached = [True] + [False] * len(args)
    for index in range(len(args)):
        if not reached[index]:
            continue
        for pattern in patterns:
            end = index + len(pattern)
            if end <= len(args) and all(
                re.fullmatch(text, arg) for text, arg in zip(pattern, args[index:end], strict=True)
            ):
                reached[end] = True
    if reached[-1]:
        return None
    return max(index for index, there in enumerate(reached) if there)


def _refusal(entry: Entry, args: Sequence[str]) -> str | None:
    total = sum(len(arg.encode()) for arg in args)
    if total > entry.max_total_args_len:
        return (
            f"The arguments of {entry.name} have {total} bytes; "
            f"write at most {entry.max_total_args_len}"
        )
    index = first_unmatched(entry.args, args)
    if index is None:
        return None
    shown = [" ".join(item) for item in entry.args]
    return (
        f"Argument {index + 1} of {entry.name}, '{args[index][:100]}', is not allowed; "
        f"write {' | '.join(shown)[:1500] or 'no arguments'}"
    )


def load_allowlist(folders: Sequence[Path]) -> AllowList:
    """Every `*.yaml` of the folders, each a list of entries. Raises ConfigError."""
    entries: list[Entry] = []
    for file in (file for folder in folders for file in sorted(folder.glob("*.yaml"))):
        data = read_yaml(file)
        if not isinstance(data, list):
            raise ConfigError(f"{file} holds no list; write one entry after each `-`")
        for number, item in enumerate(data, start=1):
            try:
                entries.append(Entry.model_validate(item))
            except ValidationError as error:
                problem = first_problem(error, "entry")
                raise ConfigError(f"{file}: entry {number}: {problem}") from error
    return AllowList(entries)


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
        entry = self._allowed.check(params.command, params.args)
        return Plan(
            (entry.path, *params.args),
            "stdio",
            entry.max_runtime_s,
            f"max_runtime_s of {entry.name}",
            entry.max_output_mb,
        )
