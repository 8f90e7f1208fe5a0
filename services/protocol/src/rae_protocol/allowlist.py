"""The rule of allow-lists: which commands and arguments an entry lets through (C5). Pure.

The node's `cli` runner and `raectl allowlist` decide with this code and say these sentences.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationInfo

from rae_protocol.errors import listed
from rae_protocol.regexcost import is_costly

_MOST_BYTES = 4096
_LONGEST = 128 * 1024 - 1  # of one argument: MAX_ARG_STRLEN of execve(2), less its end
# A value begins an argument, or stands after a mark that programs split their values at; quotes and
# backslashes are what filters of ffmpeg take away.
_QUOTES = "['\"\\\\]"
_VALUE = rf"(?:^\s*|[=,;|]){_QUOTES}*"
# Where ffmpeg puts a number: `%d`, `%03d`. It takes the one in `50%done.png` for that, too; but not
# in a text, which it neither reads nor writes in numbers by itself.
_NUMBERED = r"%(?:[0-9]+d|d(?![A-Za-z][^/%]*\.(?:txt|csv|tsv|log|md|json)$))"
# What no argument may hold, whatever a pattern says. The letters of a protocol are ffmpeg's, whose
# `subfile,` and `name%03d.mp4` are meant, too.
_NEVER = (
    (r"[\x00-\x08\x0a-\x1f\x7f-\x9f\ud800-\udfff]", "holds a control character"),
    (r"^-[^=]*(?:[/~]|\.\.)", "is an option with a path in it"),
    (rf"://|{_VALUE}(?:(?!-)[A-Za-z0-9+.-]+:|subfile,)", "is a URL or names a protocol"),
    (rf"(?:{_VALUE}|:{_QUOTES}*)/", "is or holds an absolute path"),
    (rf"(?:{_VALUE}|:{_QUOTES}*)~", "names a home folder"),
    (rf"(?:{_VALUE}|{_QUOTES}|[:/])\.\.(?:$|{_QUOTES}|[=,;|:/])", "leaves the workspace"),
    # Once for each name: what looked on from each number took the square of an argument's length.
    (rf"(?:^|/)(?=[^/]*\.[A-Za-z0-9]+$)[^/]*?{_NUMBERED}", "stands for many files"),
)


def _pattern(text: str, info: ValidationInfo) -> str:
    try:
        re.compile(text)
    except re.error as error:
        raise ValueError(f"'{text}' is no regular expression: {error}") from error
    if is_costly(text, info.data.get("max_total_args_len", _MOST_BYTES)):
        raise ValueError(
            f"'{text}' could take too long (write repeats with an end, as {{1,64}}, and none "
            "inside another, or lower max_total_args_len)"
        )
    return text


class Entry(BaseModel):
    """One program. `args`: each item matches one argument, or two that belong together."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True, allow_inf_nan=False)

    path: Annotated[str, Field(pattern=r"^(/[^/\x00-\x1f]+)+$")]
    max_total_args_len: Annotated[int, Field(gt=0, le=1024 * 1024)] = _MOST_BYTES
    max_runtime_s: Annotated[float, Field(gt=0)] = 3600
    max_output_mb: Annotated[float, Field(gt=0)] = 1024
    args: list[
        Annotated[list[Annotated[str, AfterValidator(_pattern)]], Field(min_length=1, max_length=2)]
    ] = Field(default_factory=list)

    @property
    def name(self) -> str:
        """What a bare command selects it by."""
        return self.path.rpartition("/")[2]

    @property
    def caps(self) -> str:
        """What it grants at most, in words."""
        return (
            f"at most {self.max_runtime_s:g} s, {self.max_output_mb:g} MB of output, "
            f"{self.max_total_args_len} bytes of arguments"
        )


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a call may not run; `argument` counts from 1, 0 is the call as a whole."""

    message: str
    argument: int = 0
    text: str = ""
    patterns: tuple[str, ...] = ()


def select(entries: Sequence[Entry], command: str, args: Sequence[str]) -> int | Refusal:
    """Index of the first entry that lets a call run, else why the nearest one does not."""
    refusals = []
    for index, entry in enumerate(entries):
        if command in {entry.name, entry.path}:
            found = refusal(entry, args)
            if found is None:
                return index
            refusals.append(found)
    names = listed({entry.name for entry in entries}, limit=60)
    missing = f"{_shown(command)} is not on the allow-list; choose from {names}"
    return max(refusals, key=lambda one: one.argument, default=Refusal(missing))


def refusal(entry: Entry, args: Sequence[str]) -> Refusal | None:
    """Why an entry does not let these arguments through; None when it does."""
    name, most = entry.name, entry.max_total_args_len
    sizes = [len(arg.encode(errors="surrogatepass")) for arg in args]
    if sum(sizes) > most:
        return Refusal(f"The arguments of {name} have {sum(sizes)} bytes; write at most {most}")
    if max(sizes, default=0) > _LONGEST:
        what = f"An argument of {name} has {max(sizes)} bytes"
        return Refusal(f"{what}, and Linux takes {_LONGEST} at most; put it into an input")
    for number, arg in enumerate(args, start=1):
        if why := leaves_workspace(arg):
            what = f"Argument {number} of {name}, {_shown(arg)}, {why}"
            return Refusal(f"{what}; name files relative to the workspace", number, arg)
    reached = 0
    ends = {0}
    for index in range(len(args)):
        if index in ends:
            reached = index
            ends |= {index + len(item) for item in entry.args if _takes(item, args[index:])}
    return None if len(args) in ends else _unmatched(entry, args, reached)


def leaves_workspace(arg: str) -> str | None:
    """Why an argument could reach beyond the workspace, whatever a pattern says; None if not."""
    return next((why for never, why in _NEVER if re.search(never, arg)), None)


def _takes(item: Sequence[str], args: Sequence[str]) -> bool:
    return len(item) <= len(args) and all(map(_fits, item, args))


def _fits(pattern: str, arg: str) -> bool:
    """A full match; but an option passes only where a pattern means one, which `.+` does not."""
    if re.fullmatch(pattern, arg) is None:
        return False
    return not (arg.startswith("-") and _any_letter(pattern, arg))


def _any_letter(pattern: str, arg: str) -> bool:
    """Whether the pattern would take a letter instead of the first character as well."""
    return any(re.fullmatch(pattern, letter + arg[1:]) for letter in "aZ")


def _unmatched(entry: Entry, args: Sequence[str], index: int) -> Refusal:
    """The argument that no reading of the patterns gets past, or the second half of its pair."""
    pairs = [item for item in entry.args if len(item) == 2]
    halves = tuple(second for first, second in pairs if _fits(first, args[index]))
    after = bool(halves) and index + 1 < len(args)
    index += after
    arg, tried = args[index], halves or tuple(item[0] for item in entry.args)
    shown = " | ".join(halves or [" followed by ".join(item) for item in entry.args])[:1500]
    if halves and not after:
        what = f"is the first of two; add one after it that matches {shown}"
    elif arg.startswith("-") and any(re.fullmatch(one, arg) for one in tried):
        what = f"looks like an option; write a file's name as {_shown('./' + arg)}"
    else:
        where = f" after {_shown(args[index - 1])}" if after else ""
        how = f"write what matches {shown}" if shown else "give it no arguments"
        what = f"is not allowed{where}; {how}"
    return Refusal(
        f"Argument {index + 1} of {entry.name}, {_shown(arg)}, {what}", index + 1, arg, tried
    )


def _shown(text: str) -> str:
    return repr(text if len(text) <= 100 else text[:99] + "…")
