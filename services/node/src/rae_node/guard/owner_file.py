"""`owner.yaml`: the owner's own rules. A good change counts at once, a bad one closes the node."""

from __future__ import annotations

import os
import stat
import threading
import time
from collections.abc import Callable
from datetime import datetime, tzinfo
from pathlib import Path
from typing import Annotated, Any, Literal
from zoneinfo import ZoneInfo

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    ValidationError,
    field_validator,
)

from rae_node.errors import ConfigError, first_problem, listed
from rae_node.guard.gpu_rules import Resting
from rae_node.guard.owner_rules import STRICT, Mode, OwnerRules, Window, days_of, minutes_of
from rae_protocol.errors import in_words
from rae_protocol.yamlfile import read_yaml

_MODES: dict[str, Mode] = {"auto": "auto", "always": "always", "never": "never"}
_LEND = "write auto, always or never, or such as `never until 2030-12-24 18:00`"
_YEARS = range(2000, 2200)
_GONE_S = 2.0


def _names(value: object) -> object:
    """A list of process names; nothing is an empty one."""
    if value is None:
        return []
    if not isinstance(value, list):
        raise ValueError(f"is no list; write [{value}]")
    for name in value:
        if not isinstance(name, str) or not name or "/" in name or not name.isprintable():
            raise ValueError(f"{name!r} is no process name; write it as `ps -e` shows it")
    return value


def _spans(value: object) -> object:
    """Hours of a day: one, a list, or nothing for none."""
    found = value if isinstance(value, list) else [] if value is None else [value]
    for span in found:
        if not isinstance(span, str):
            raise ValueError(f"{span!r} are no hours; write 18:00-08:00, or 00:00-24:00 for a day")
        minutes_of(span)
    return found


def _days(value: str) -> str:
    days_of(value)
    return value


def _section(value: object) -> object:
    """A section of which every line is commented out."""
    return {} if value is None else value


Percent = Annotated[float, Field(ge=0, le=100)]
Minutes = Annotated[float, Field(ge=0, le=60 * 24 * 30)]
Names = Annotated[list[str], BeforeValidator(_names)]
Spans = Annotated[list[str], BeforeValidator(_spans)]
Days = Annotated[str, AfterValidator(_days)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)


class Limits(_Section):
    """Lower limits than runtime.yaml's count; higher ones change nothing. GB means GiB."""

    cpu_percent: Percent | None = None
    gpu_percent: Percent | None = None
    vram_gb: Annotated[float, Field(ge=0, le=16384)] | None = None
    input_idle_minutes: Minutes = 0.0
    terminal_idle_minutes: Minutes = 0.0


class OwnerYaml(_Section):
    """Every key is optional."""

    lend: str | None = None
    time_zone: str | None = None
    hours: dict[Days, Spans] | None = None
    present_while: Names = Field(default_factory=list)
    limits: Annotated[Limits, BeforeValidator(_section)] = Limits()
    gpu_may_rest: Names = Field(default_factory=list)
    gpu_resting: Literal["strict", "allowed"] = "strict"

    @field_validator("time_zone")
    @classmethod
    def _zone(cls, value: str | None) -> str | None:
        _zone_of(value)
        return value

    @field_validator("hours", mode="before")
    @classmethod
    def _hours(cls, value: object) -> object:
        if not isinstance(value, dict):
            raise ValueError("has no days; write lines such as `mon-fri: [18:00-08:00]` below it")
        return value

    @field_validator("lend", mode="before")
    @classmethod
    def _lend(cls, value: object) -> object:
        if value is not None:
            _lend_of(value, None)
        return value


OWNER_KEYS = frozenset(OwnerYaml.model_fields)


def load_owner(file: Path) -> OwnerRules:
    """The rules of a node's file that is there. Raises ConfigError, with the line."""
    _refuse_other_writers(file)
    return parse_owner(file)


def parse_owner(file: Path) -> OwnerRules:
    """What a file says, whoever may write it. Raises ConfigError, with the line."""
    found = read_yaml(file, ConfigError)
    data = found.value
    if data is None and (found.tree is not None or "#" not in file.read_text(encoding="utf-8")):
        raise ConfigError(f"{file} is empty; write `lend: auto` into it, or remove it")
    data = {} if data is None else data
    if not isinstance(data, dict):
        raise ConfigError(
            f"{file} holds no settings; write lines such as `lend: never`, a space after the colon"
        )
    try:
        said = OwnerYaml.model_validate(data)
    except ValidationError as error:
        known = {*map(str, data), *(str(name) for one in _inner(data) for name in one)}
        place = [one for one in error.errors()[0]["loc"] if isinstance(one, int) or one in known]
        raise ConfigError(f"{found.where(place)}: {_problem(error)}") from error
    zone = _zone_of(said.time_zone)
    lend, until = ("auto", None) if said.lend is None else _lend_of(said.lend, zone)
    limits = said.limits.model_dump(include={"cpu_percent", "gpu_percent", "vram_gb"})
    return OwnerRules(
        lend, until, zone, _windows_of(said.hours), frozenset(said.present_while),
        {name: value for name, value in limits.items() if value is not None},
        said.limits.input_idle_minutes * 60, said.limits.terminal_idle_minutes * 60,
        Resting(frozenset(said.gpu_may_rest), said.gpu_resting == "allowed"),
    )  # fmt: skip


class OwnerFile:
    """The file as it is now, read again when it has changed. Safe from every thread."""

    def __init__(self, file: Path, monotonic: Callable[[], float] = time.monotonic) -> None:
        self.path = file
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._known: tuple[tuple[int, ...] | None, OwnerRules | ConfigError] = (None, STRICT)
        self._missed_at: float | None = None

    def rules(self) -> OwnerRules:
        """What counts; without a file the strict defaults. Raises ConfigError for a bad one.

        A file that is gone counts on for a moment: editors put a new one in its place.
        """
        with self._lock:
            stamp = self._stamp()
            known, found = self._known
            if stamp is not None:
                self._missed_at = None
            elif known is not None and not self._is_gone():
                stamp = known
            if stamp != known:
                found = STRICT if stamp is None else self._read()
                self._known = (stamp, found)
        if isinstance(found, ConfigError):
            raise found
        return found

    def rules_or_strict(self) -> OwnerRules:
        """For what only loosens or tightens: a bad file closes the node elsewhere."""
        try:
            return self.rules()
        except ConfigError:
            return STRICT

    def changed(self) -> bool:
        """Whether the file is another one than `rules` has read."""
        return self._stamp() != self._known[0]

    def _is_gone(self) -> bool:
        now = self._monotonic()
        if self._missed_at is None:
            self._missed_at = now
        return now - self._missed_at >= _GONE_S

    def _read(self) -> OwnerRules | ConfigError:
        try:
            return load_owner(self.path)
        except ConfigError as error:
            return error

    def _stamp(self) -> tuple[int, ...] | None:
        """Changes with the file, its owner and its folder's; None where there is no file."""
        try:
            folder, info = self.path.parent.stat(), self.path.lstat()
        except FileNotFoundError:
            return None
        except OSError:  # reading it says why
            return ()
        changes = (info.st_mtime_ns, info.st_ctime_ns, info.st_size, info.st_ino)
        return (*changes, folder.st_uid, folder.st_mode)


def _refuse_other_writers(file: Path) -> None:
    """The file belongs to root; on a development node, to the user whose folder it lies in."""
    try:
        info, folder = file.lstat(), file.parent.stat()
    except OSError as error:
        raise ConfigError(f"{file} cannot be read: {in_words(error)}") from error
    if not stat.S_ISREG(info.st_mode):  # a link may lead to where others write, or nowhere
        raise ConfigError(f"{file} is no regular file; put the file itself there, or remove it")
    for path, known in ((file, info), (file.parent, folder)):
        if known.st_mode & 0o022:
            raise ConfigError(
                f"{path} may be written by others than its owner; run `chmod go-w {path}`"
            )
    if info.st_uid not in {0, folder.st_uid}:
        raise ConfigError(f"{file} belongs to another user than root; run `chown root {file}`")
    if not os.access(file, os.R_OK):
        raise ConfigError(f"{file} may not be read by the agent; run `chmod a+r {file}`")


def _problem(error: ValidationError) -> str:
    """The first mistake and the way out."""
    first = error.errors()[0]
    loc = [str(part) for part in first["loc"] if part != "[key]"]
    if first["type"] == "value_error":  # ours: each names its way out
        said = first["msg"].removeprefix("Value error, ")
        return f"{loc[0]}: {said}"
    if first["type"] == "extra_forbidden":
        known = Limits if len(loc) > 1 else OwnerYaml
        if _is_day(loc[-1]):
            return f"{loc[-1]} stands outside of `hours`; indent it below that line"
        return f"{loc[-1]} is not known; known here are {listed(known.model_fields, limit=99)}"
    return first_problem(error, "the file")


def _is_day(text: str) -> bool:
    try:
        days_of(text)
    except ValueError:
        return False
    return True


def _inner(data: dict[str, Any]) -> list[dict[str, Any]]:
    return [value for value in data.values() if isinstance(value, dict)]


def _zone_of(name: str | None) -> tzinfo | None:
    if name is None:
        return None
    try:
        return ZoneInfo(name)
    except (LookupError, ValueError, OSError) as error:
        raise ValueError(
            f"{name!r} is no time zone of this machine; `timedatectl list-timezones` lists them"
        ) from error


def _windows_of(hours: dict[str, list[str]] | None) -> tuple[Window, ...] | None:
    if hours is None:
        return None
    found = []
    for days, spans in hours.items():
        for start, end in map(minutes_of, spans):
            found += [Window(day, start, end) for day in days_of(days)]
    return tuple(found)


def _lend_of(value: object, zone: tzinfo | None) -> tuple[Mode, float | None]:
    word, _, end = value.strip().partition(" ") if isinstance(value, str) else ("", "", "")
    until = end.strip().removeprefix("until ").strip()
    if word not in _MODES or (end and until == end.strip()):
        raise ValueError(f"{value!r} is no such rule; {_LEND}")
    if not end:
        return _MODES[word], None
    try:
        moment = datetime.fromisoformat(until)
    except ValueError as error:
        raise ValueError(f"{until!r} is no date and time; {_LEND}") from error
    if moment.year not in _YEARS:
        raise ValueError(f"the year of {until!r} is out of reach; {_LEND}")
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=zone) if zone is not None else moment.astimezone()
    return _MODES[word], moment.timestamp()
