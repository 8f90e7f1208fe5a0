"""What `run()` of a task file takes, read from its text: nothing is imported before it may run."""

from __future__ import annotations

import ast
import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rae_node.errors import TaskFailure
from rae_protocol.errors import in_words

_PLAIN: dict[str, tuple[type, ...]] = {
    "str": (str,), "bool": (bool,), "int": (int,), "float": (int, float), "None": (type(None),),
    "list": (list,), "dict": (dict,),
}  # fmt: skip
_SAME = {"List": "list", "Dict": "dict"}


@dataclass(frozen=True, slots=True)
class Signature:
    """Its parameters by name, those without a default, and whether it takes any other."""

    notes: Mapping[str, ast.expr | None]
    required: frozenset[str]
    takes_rest: bool
    shown: str

    def problem(self, params: Mapping[str, Any]) -> str | None:
        """Why it cannot be called with these; None when it can."""
        for name, value in params.items():
            if name == "ctx":
                return "'ctx' is given by the node; leave it out"
            if name not in self.notes and not self.takes_rest:
                return f"'{name[:100]}' is not known to {self.shown}; remove it"
            note = self.notes.get(name)
            if note is not None and not fits(value, note):
                given = json.dumps(value, ensure_ascii=False)
                short = given if len(given) <= 100 else given[:99] + "…"
                return f"'{name}' is {short}; give it as {ast.unparse(note)}"
        missing = sorted(self.required - set(params))
        if missing:
            return f"'{missing[0]}' is missing; give it, as {self.shown} wants"
        return None


def read_signature(file: Path) -> Signature | None:
    """That of `run` in a task file; None when only running the file tells.

    Raises TaskFailure E_INVALID when it is no Python, naming the line.
    """
    try:
        tree = ast.parse(file.read_bytes())
    except OSError as error:
        raise TaskFailure("E_INVALID", f"{file} cannot be read: {in_words(error)}") from error
    except (SyntaxError, ValueError, RecursionError) as error:
        line = f", line {error.lineno}" if isinstance(error, SyntaxError) else ""
        said = error.msg if isinstance(error, SyntaxError) else str(error)
        raise TaskFailure(
            "E_INVALID",
            f"{file.name}{line} is no valid Python ({said}); fix that file on the node",
        ) from error
    return next(
        (
            _signature(node)
            for node in reversed(tree.body)
            if isinstance(node, ast.FunctionDef)
            and node.name == "run"
            and not node.decorator_list  # which may change what it takes
        ),
        None,
    )


def _signature(node: ast.FunctionDef) -> Signature:
    args = node.args
    named = [*args.posonlyargs, *args.args]
    needed = [arg.arg for arg in named[: len(named) - len(args.defaults)]]
    needed += [
        arg.arg
        for arg, default in zip(args.kwonlyargs, args.kw_defaults, strict=True)
        if default is None
    ]
    notes = {arg.arg: arg.annotation for arg in (*named, *args.kwonlyargs) if arg.arg != "ctx"}
    shown = f"run({ast.unparse(args)})"
    required = frozenset(name for name in needed if name != "ctx")
    return Signature(notes, required, args.kwarg is not None, shown)


def fits(value: Any, note: ast.expr) -> bool:
    """Whether a JSON value is of an annotated type; a type that is not known here takes all."""
    if isinstance(note, ast.Constant) and isinstance(note.value, str):
        try:
            return fits(value, ast.parse(note.value, mode="eval").body)
        except (SyntaxError, ValueError):
            return True
    if isinstance(note, ast.BinOp) and isinstance(note.op, ast.BitOr):
        return fits(value, note.left) or fits(value, note.right)
    if isinstance(note, ast.Subscript):
        inner = note.slice.elts if isinstance(note.slice, ast.Tuple) else [note.slice]
        return _fits_inner(value, _name(note.value), inner)
    plain = _PLAIN.get(_name(note))
    return plain is None or type(value) in plain


def _fits_inner(value: Any, outer: str, inner: list[ast.expr]) -> bool:
    if outer == "Literal":
        return any(_is_literal(value, item) for item in inner)
    if outer in {"Optional", "Union"}:
        return (outer == "Optional" and value is None) or any(fits(value, one) for one in inner)
    if outer == "list" and len(inner) == 1:
        return isinstance(value, list) and all(fits(one, inner[0]) for one in value)
    if outer == "dict" and len(inner) == 2:
        return isinstance(value, dict) and all(
            fits(key, inner[0]) and fits(one, inner[1]) for key, one in value.items()
        )
    return True


def _name(note: ast.expr) -> str:
    """`List` of both `List` and `typing.List`, as the built-in's name."""
    if isinstance(note, ast.Constant):
        return str(note.value)
    name = note.attr if isinstance(note, ast.Attribute) else getattr(note, "id", "")
    return _SAME.get(name, name)


def _is_literal(value: Any, item: ast.expr) -> bool:
    try:
        wanted = ast.literal_eval(item)
    except ValueError:  # a member of an enumeration
        return True
    return type(value) is type(wanted) and bool(value == wanted)
