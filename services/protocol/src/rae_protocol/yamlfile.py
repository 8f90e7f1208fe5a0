"""YAML files that people write: read strictly, and every mistake has its line."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from rae_protocol.errors import RaeError, first_problem, in_words, listed

MAX_BYTES = 1024 * 1024
BAD_YAML = (yaml.YAMLError, ValueError, RecursionError)
_MERGE = "tag:yaml.org,2002:merge"
# What counts as a number. YAML 1.1 also has octal (010), hexadecimal, binary, base 60 (1:30) and
# digits with _ between them: people mean something else by those, so they are text here.
_DECIMAL = {
    "tag:yaml.org,2002:int": re.compile(r"[-+]?(?:0|[1-9][0-9]*)"),
    "tag:yaml.org,2002:float": re.compile(
        r"[-+]?(?:(?:0|[1-9][0-9]*)\.[0-9]*|\.[0-9]+)(?:[eE][-+][0-9]+)?"
    ),
}
_AS_WRITTEN = {*_DECIMAL, "tag:yaml.org,2002:timestamp"}
M = TypeVar("M", bound=BaseModel)


class BadFile(RaeError):
    """A file that somebody wrote is wrong; the text names the place and what is allowed."""

    def __init__(self, message: str) -> None:
        super().__init__("bad_file", message)

    @property
    def message(self) -> str:
        """The cause brings its way out along."""
        return self.cause or self.way_out


class _Loader(yaml.SafeLoader):
    """Each value has one place and one line: no anchors, no aliases, no merge keys.

    Numbers are decimal; all else that YAML 1.1 takes for a number or a date is text as written.
    """

    yaml_implicit_resolvers = {  # noqa: RUF012 - as PyYAML has it
        first: [(tag, pattern) for tag, pattern in found if tag not in _AS_WRITTEN]
        for first, found in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def compose_node(self, parent: yaml.Node | None, index: Any) -> yaml.Node | None:
        event: Any = self.peek_event()  # type: ignore[no-untyped-call]
        anchored = getattr(event, "anchor", None)
        node = None if anchored else super().compose_node(parent, index)
        if anchored or (node is not None and node.tag == _MERGE):
            what = "anchors, aliases and << have no place in settings: write the value out"
            raise yaml.MarkedYAMLError(problem=what, problem_mark=event.start_mark)
        return node

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            decimal = _DECIMAL.get(node.tag)  # `!!int 010` gets here without a resolver
            if decimal is not None and not decimal.fullmatch(str(node.value)):
                raise ValueError(node.value)
            return super().construct_object(node, deep)
        except (ValueError, LookupError, AttributeError) as error:  # what `!!int ""` comes to
            what = f"{node.value!r} is no {node.tag.rpartition(':')[2]}"
            raise yaml.MarkedYAMLError(problem=what, problem_mark=node.start_mark) from error


for _tag, _pattern in _DECIMAL.items():
    _Loader.add_implicit_resolver(
        _tag, re.compile(rf"(?:{_pattern.pattern})$"), list("-+.0123456789")
    )


def load(text: str) -> tuple[Any, yaml.Node | None]:
    """A value and its tree. Raises BAD_YAML."""
    loader = _Loader(text)
    tree = loader.get_single_node()
    return (None if tree is None else loader.construct_document(tree)), tree


def read_entries(file: Path, model: type[M]) -> list[M]:
    """A list of entries of one kind. Raises BadFile, with the line and the field."""
    data, tree = parse_yaml(file)
    if not isinstance(data, list):
        raise BadFile(f"{file} holds no list; write one entry after each `-`")
    found = []
    for index, item in enumerate(data):
        try:
            found.append(model.model_validate(item))
        except ValidationError as error:
            place = (index, *error.errors(include_url=False)[0]["loc"])
            where, problem = f"{file}:{line_of(tree, place)}", first_problem(error, "entry")
            known = listed(model.model_fields)
            raise BadFile(
                f"{where}: entry {index + 1}: {problem}; known here are {known}"
            ) from error
    return found


def parse_yaml(file: Path) -> tuple[Any, yaml.Node | None]:
    """What is in a file, and its tree for `line_of`.

    Raises BadFile, also for a name that stands there twice.
    """
    try:
        # A pipe would be waited for.
        with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as handle:
            if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
                raise BadFile(f"{file} is no regular file; name another file")
            data = handle.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise BadFile(f"{file} is larger than a settings file can be; name another file")
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = in_words(error) if isinstance(error, OSError) else "no UTF-8 text; save it as such"
        raise BadFile(f"{file} cannot be read: {why}") from error
    try:
        value, tree = load(text)
        _refuse_doubles(tree, file)
        return value, tree
    except BAD_YAML as error:
        mark = getattr(error, "problem_mark", None)
        line = f":{mark.line + 1}" if mark else ""
        what = getattr(error, "problem", None) or str(error)
        raise BadFile(f"{file}{line}: this is no valid YAML ({what}); fix that line") from error


def line_of(tree: yaml.Node | None, place: Sequence[str | int]) -> int | None:
    """The line (from 1) of the deepest part of `place` that is there; None without a tree."""
    line = None if tree is None else tree.start_mark.line + 1
    for part in place:
        child: yaml.Node | None = None
        if isinstance(tree, yaml.MappingNode):
            for key, value in tree.value:
                if key.value == str(part):
                    line, child = key.start_mark.line + 1, value
        elif isinstance(tree, yaml.SequenceNode) and str(part) in map(str, range(len(tree.value))):
            child = tree.value[int(part)]
            line = child.start_mark.line + 1
        if child is None:
            break
        tree = child
    return line


def _refuse_doubles(tree: yaml.Node | None, file: Path) -> None:
    """A name that stands there twice would silently mean its last value."""
    waiting, seen = [tree], set()
    while waiting:
        node = waiting.pop()
        if node is None or id(node) in seen:
            continue
        seen.add(id(node))
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            names: dict[str, int] = {}
            for key, value in node.value:
                line = key.start_mark.line + 1
                name = str(key.value)
                if name in names:
                    raise BadFile(
                        f"{file}:{line}: {name} stands there twice, first in line {names[name]}; "
                        "remove one of them"
                    )
                names[name] = line
                waiting.append(value)
