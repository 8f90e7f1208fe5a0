"""YAML files that people write: read strictly, and every mistake has its line."""

from __future__ import annotations

import os
import re
import stat
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from rae_protocol.errors import first_problem, in_words, listed

MAX_BYTES = 1024 * 1024
_BAD_YAML = (yaml.YAMLError, ValueError, RecursionError)
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
Wrong = Callable[[str], Exception]


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


@dataclass(frozen=True, slots=True)
class YamlFile:
    """A file that was read. Its methods raise `wrong`, with the line and the field."""

    path: Path
    value: Any
    tree: yaml.Node | None
    wrong: Wrong

    def settings(self) -> dict[str, Any]:
        """Names and values."""
        if not isinstance(self.value, dict):
            raise self.wrong(f"{self.path} holds no settings; write `name: value` lines")
        return self.value

    def checked(self, model: type[M], data: object, overrides: Collection[str] = ()) -> M:
        """`data`, which is the file's, with values of these names put over it."""
        try:
            return model.model_validate(data)
        except ValidationError as error:
            first = error.errors(include_url=False)[0]
            said, hint = first_problem(error, "the file"), ""
            if first["type"] == "extra_forbidden":
                hint = f"; known here are {listed(_known(model, first['loc'][:-1]), limit=99)}"
            place = first["loc"]
            where = self.where(place) if set(place).isdisjoint(overrides) else "--set"
            raise self.wrong(f"{where}: {said}{hint}") from error

    def entries(self, model: type[M]) -> list[M]:
        """A list of entries of one kind."""
        if not isinstance(self.value, list):
            raise self.wrong(f"{self.path} holds no list; write one entry after each `-`")
        found = []
        for index, item in enumerate(self.value):
            try:
                found.append(model.model_validate(item))
            except ValidationError as error:
                where = self.where((index, *error.errors(include_url=False)[0]["loc"]))
                said, known = first_problem(error, "entry"), listed(model.model_fields)
                text = f"{where}: entry {index + 1}: {said}; known here are {known}"
                raise self.wrong(text) from error
        return found

    def where(self, place: Sequence[str | int]) -> str:
        """The file, and the line (from 1) of the deepest part of `place` that is there."""
        tree = self.tree
        if tree is None:
            return str(self.path)
        line = tree.start_mark.line
        for part in place:
            child: yaml.Node | None = None
            if isinstance(tree, yaml.MappingNode):
                for key, value in tree.value:
                    if key.value == str(part):
                        line, child = key.start_mark.line, value
            elif isinstance(tree, yaml.SequenceNode) and part in range(len(tree.value)):
                child = tree.value[int(part)]
                line = child.start_mark.line
            if child is None:
                break
            tree = child
        return f"{self.path}:{line + 1}"


def read_yaml(file: Path, wrong: Wrong) -> YamlFile:
    """What is in a file. Raises `wrong`, also for a name that stands there twice."""
    try:
        # A pipe would be waited for.
        with os.fdopen(os.open(file, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as handle:
            if not stat.S_ISREG(os.fstat(handle.fileno()).st_mode):
                raise wrong(f"{file} is no regular file; name another file")
            data = handle.read(MAX_BYTES + 1)
        if len(data) > MAX_BYTES:
            raise wrong(f"{file} is larger than a settings file can be; name another file")
        text = data.decode("utf-8")
    except (OSError, UnicodeDecodeError) as error:
        why = in_words(error) if isinstance(error, OSError) else "no UTF-8 text; save it as such"
        raise wrong(f"{file} cannot be read: {why}") from error
    try:
        value, tree = _load(text)
    except _BAD_YAML as error:
        mark = getattr(error, "problem_mark", None)
        where = f"{file}:{mark.line + 1}" if mark else str(file)
        what = getattr(error, "problem", None) or str(error)
        raise wrong(f"{where}: this is no valid YAML ({what}); fix that line") from error
    if (double := _first_double(tree)) is not None:
        name, line, first = double
        raise wrong(
            f"{file}:{line}: {name} stands there twice, first in line {first}; remove one of them"
        )
    return YamlFile(file, value, tree, wrong)


def read_overrides(pairs: Iterable[str], wrong: Wrong) -> dict[str, object]:
    """`--set NAME=VALUE`: what the values mean in a file. Raises `wrong`."""
    found: dict[str, object] = {}
    for pair in pairs:
        name, sign, text = pair.partition("=")
        if not sign or not name:
            raise wrong(f"--set {pair}: write NAME=VALUE")
        try:
            found[name.strip()] = _load(text)[0]
        except _BAD_YAML as error:
            raise wrong(f"--set {pair}: the value is no YAML; put it in quotes") from error
    return found


def _load(text: str) -> tuple[Any, yaml.Node | None]:
    loader = _Loader(text)
    tree = loader.get_single_node()
    return (None if tree is None else loader.construct_document(tree)), tree


def _known(model: type[BaseModel], place: Sequence[str | int]) -> list[str]:
    """The names that a model, or the section of it at `place`, knows."""
    fields = {field.alias or name: field for name, field in model.model_fields.items()}
    inner = fields[str(place[0])].annotation if place else None
    if isinstance(inner, type) and issubclass(inner, BaseModel):
        return _known(inner, place[1:])
    return list(fields)


def _first_double(tree: yaml.Node | None) -> tuple[str, int, int] | None:
    """A name that stands there twice would silently mean its last value: it and both lines."""
    waiting = [tree]
    while waiting:
        node = waiting.pop()
        if isinstance(node, yaml.SequenceNode):
            waiting += node.value
        elif isinstance(node, yaml.MappingNode):
            names: dict[str, int] = {}
            for key, value in node.value:
                line, name = key.start_mark.line + 1, str(key.value)
                if name in names:
                    return name, line, names[name]
                names[name] = line
                waiting.append(value)
    return None
