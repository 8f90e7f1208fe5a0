"""`cli`: a program on the allow-list (C5), never a shell."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from pydantic import Field

from rae_node.errors import ConfigError, NodeError, TaskFailure
from rae_node.runners.base import Params, Plan, parse_params
from rae_node.runners.trust import identity, untrusted
from rae_node.workspace.workspace import Workspace
from rae_protocol.allowlist import Entry, Refusal, select
from rae_protocol.errors import in_words
from rae_protocol.models import LeasedTask
from rae_protocol.yamlfile import read_yaml


class AllowList:
    """All entries of a node; offered are those whose program is there and trusted."""

    def __init__(self, entries: Sequence[Entry]) -> None:
        self.entries = tuple(entries)

    def offered(self) -> list[str]:
        """Names of the programs that may run."""
        return sorted({entry.name for entry in self.entries if obstacle(entry) is None})

    def commands(self) -> list[str]:
        """Everything that a task may call them: names, then paths."""
        paths = {entry.path for entry in self.entries if obstacle(entry) is None}
        return [*self.offered(), *sorted(paths)]

    def programs(self) -> list[Path]:
        """What a box must show of them."""
        return [Path(entry.path) for entry in self.entries if obstacle(entry) is None]

    def missing(self) -> list[str]:
        """Names that are allowed but not installed."""
        there = {entry.name for entry in self.entries if Path(entry.path).is_file()}
        return sorted({entry.name for entry in self.entries} - there)

    def distrusted(self) -> list[str]:
        """Why programs that are installed are not offered."""
        found = {obstacle(entry) for entry in self.entries if Path(entry.path).is_file()}
        return sorted(why for why in found if why)

    def check(self, command: str, args: Sequence[str]) -> Entry:
        """The entry that lets it run. Raises TaskFailure E_DENY saying which argument failed."""
        named = [entry for entry in self.entries if command in {entry.name, entry.path}]
        usable = [entry for entry in named or self.entries if obstacle(entry) is None]
        if named and not usable:
            why = obstacle(named[0])
            raise TaskFailure("E_DENY", f"'{command}' does not run on this node: {why}")
        found = select(usable, command, args)
        if isinstance(found, Refusal):
            raise TaskFailure("E_DENY", found.message)
        return usable[found]


def obstacle(entry: Entry) -> str | None:
    """Why the program of an entry is not offered; None when it is."""
    program = Path(entry.path)
    if not program.is_file():
        return f"{program} is not there; install it, or choose another command"
    try:
        why = untrusted(program)
    except OSError as error:
        why = in_words(error)
    return why and f"{program} is not trusted: {why}"


class AllowFolders(AllowList):
    """Every `*.yaml` of the folders, each a list of entries. Raises ConfigError.

    `check_programs` raises NodeError for programs that cannot run here.
    """

    def __init__(self, folders: Sequence[Path]) -> None:
        self.check_programs: Callable[[list[Path]], None] = lambda _: None
        self.problem: str | None = None
        self._folders, self._seen = folders, _stamps(folders)
        super().__init__(_entries(folders))

    def look(self) -> Literal["rejected", "changed"] | None:
        """Read again what has changed; a list with an error leaves the former one in force."""
        stamps = _stamps(self._folders)
        if stamps == self._seen:
            return None
        self._seen = stamps
        try:
            found = AllowList(_entries(self._folders))
            self.check_programs(found.programs())
        except NodeError as error:
            self.problem = error.message
            return "rejected"
        self.problem, self.entries = None, found.entries
        return "changed"


def _entries(folders: Sequence[Path]) -> list[Entry]:
    files = [read_yaml(file, ConfigError) for file in _files(folders)]
    return [entry for file in files for entry in file.entries(Entry)]


def _files(folders: Sequence[Path]) -> list[Path]:
    return [file for folder in folders for file in sorted(folder.glob("*.yaml"))]


def _stamps(folders: Sequence[Path]) -> list[tuple[Path, int, int, int]]:
    """What tells that a file is another one than before."""
    found = []
    for file in _files(folders):
        with contextlib.suppress(OSError):  # it has just gone, and is missed by its absence
            info = file.stat()
            found.append((file, info.st_mtime_ns, info.st_size, info.st_ino))
    return found


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
        """The command with its caps. Raises TaskFailure E_INVALID, E_DENY; OSError."""
        params = parse_params(CliParams, task)
        entry = self._allowed.check(params.command, params.args)
        # The inputs are plain files that the agent made, so no link is there before the start, and
        # what the program makes later only counts inside its box. This holds even so.
        for number, arg in enumerate(params.args, start=1):
            if not _stays_in(workspace.work, arg):
                raise TaskFailure(
                    "E_DENY",
                    f"Argument {number} of {entry.name}, {arg[:100]!r}, leads out of the "
                    "workspace through a link; name a plain file",
                )
        return Plan(
            (entry.path, *params.args),
            "stdio",
            entry.max_runtime_s,
            f"max_runtime_s of {entry.name}",
            entry.max_output_mb,
            shown=(Path(entry.path),),
            identity=identity(Path(entry.path)),
        )


def _stays_in(folder: Path, arg: str) -> bool:
    """Whether an argument, or its value after `=`, means a place inside the folder if it is one."""
    home = folder.resolve()
    places = (arg, arg.partition("=")[2])
    return all((home / place).resolve().is_relative_to(home) for place in places)
