"""Every body of the protocol under one name; parsing that refuses what JSON should not carry."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any, NoReturn, TypeVar

from pydantic import ValidationError

from rae_protocol import nodes, tasks
from rae_protocol.errors import UNKNOWN_FIELD, RaeError, field_in_words, first_problem
from rae_protocol.names import MAX_NESTING, MAX_VALUES
from rae_protocol.nodes import *  # noqa: F403 - the one place that gathers the models
from rae_protocol.tasks import *  # noqa: F403 - the one place that gathers the models

M = TypeVar("M", bound=tasks.Model)

# Mistakes of a body that are listed, and the length of a field's name there. pydantic lists all or
# none; a list of a hundred thousand takes seconds and hundreds of megabytes.
LISTED, COUNTED, NAME_CHARACTERS = 20, 600, 200

BODIES: dict[str, type[tasks.Model]] = {
    name: value
    for module in (tasks, nodes)
    for name, value in vars(module).items()
    if isinstance(value, type) and issubclass(value, tasks.Model) and value is not tasks.Model
}


def _no_constant(name: str) -> NoReturn:
    raise ValueError(f"{name} is not a JSON number")


def _no_doubles(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("an object has the same key twice")
    return found


def _too_many(body: bytes) -> bool:
    """Whether so many values come that not even parsing them is worth it (it holds the GIL)."""
    if body.count(b",") + body.count(b":") < MAX_VALUES:
        return False
    plain = body.replace(b"\\\\", b"").replace(b'\\"', b"")
    outside = b"".join(plain.split(b'"')[::2])
    return outside.count(b",") + outside.count(b":") >= MAX_VALUES


def check_value(value: Any, depth: int = MAX_NESTING) -> None:
    """Walk a decoded JSON value: nesting, integers beyond 64 bits, lone surrogates.

    Raises RaeError `invalid_json`. SQLite and other languages could not carry such values.
    """
    stack: list[tuple[Any, int]] = [(value, depth)]
    count = 0
    while stack:
        item, left = stack.pop()
        count += 1
        if count > MAX_VALUES:
            raise RaeError("invalid_json", f"the body holds more than {MAX_VALUES} values")
        if isinstance(item, str):
            if not item.isascii():
                try:
                    item.encode("utf-8")
                except UnicodeEncodeError as error:
                    raise RaeError(
                        "invalid_json", "a string holds half a surrogate pair"
                    ) from error
        elif isinstance(item, dict | list):
            if left <= 0:
                raise RaeError("invalid_json", f"the body is nested deeper than {MAX_NESTING}")
            if isinstance(item, dict):
                stack.extend((key, left - 1) for key in item)
                stack.extend((child, left - 1) for child in item.values())
            else:
                stack.extend((child, left - 1) for child in item)
        elif isinstance(item, int) and not -(2**63) <= item < 2**63:
            raise RaeError("invalid_json", "an integer does not fit into 64 bits")
        elif isinstance(item, float) and not -1e308 <= item <= 1e308:
            raise RaeError("invalid_json", "a number is too large")


def decode(body: bytes) -> Any:
    """Bytes to a JSON value that every part of the mesh can carry.

    Raises RaeError `invalid_json` with the place of the mistake.
    """
    if _too_many(body):
        raise RaeError("invalid_json", f"the body holds more than {MAX_VALUES} values")
    try:
        value = json.loads(
            body.decode("utf-8"), parse_constant=_no_constant, object_pairs_hook=_no_doubles
        )
    except RecursionError as error:
        raise RaeError("invalid_json", f"the body is nested deeper than {MAX_NESTING}") from error
    except ValueError as error:
        raise RaeError("invalid_json", str(error)[:200]) from error
    check_value(value)
    return value


def parse(model: type[M], value: Any) -> M:
    """A decoded value to a body.

    Raises RaeError `invalid_body`; its detail lists the first fields with what is wrong.
    """
    try:
        return model.model_validate(value, context=tasks.SENT)
    except ValidationError as error:
        if (count := error.error_count()) > COUNTED:
            cause = f"{count} fields are unknown or wrong"
            problems = [{"field": "", "problem": cause}]
            raise RaeError("invalid_body", cause, problems=problems) from None
        problems = [
            {
                "field": ".".join(str(part) for part in item["loc"])[:NAME_CHARACTERS],
                "problem": field_in_words(item["type"], item["msg"]),
            }
            for item in error.errors(include_url=False, include_context=False, include_input=False)
        ][:LISTED]
        first = problems[0]
        where = first["field"] or "the body"
        raise RaeError("invalid_body", f"{where}: {first['problem']}", problems=problems) from error


def parse_answer(model: type[M], body: bytes) -> M:
    """What the other side answered; fields of a newer version are ignored.

    Raises ValueError when it is no such answer.
    """
    try:
        return model.model_validate_json(body, extra="ignore")
    except ValidationError as error:
        what = first_problem(error, "the body")
        raise ValueError(f"it holds no {model.__name__}; {what}") from error


def parse_leased(value: object) -> nodes.LeasedTask:
    """A task that was given out; fields of a newer control are ignored. Raises ValueError."""
    try:
        return nodes.LeasedTask.model_validate(value, extra="ignore")
    except ValidationError as error:
        raise ValueError(f"it holds no task; {first_problem(error, 'the task')}") from error


def encode(model: tasks.Model) -> bytes:
    """A body to compact JSON."""
    return model.model_dump_json(exclude_none=True).encode()


def unknown_fields(detail: Mapping[str, Any]) -> set[str]:
    """The fields that the other side does not know, by the detail of its `invalid_body`.

    Each is a path such as `capabilities.commands`; empty when anything else was wrong, too.
    """
    problems = detail.get("problems")
    if not isinstance(problems, list) or not all(isinstance(one, dict) for one in problems):
        return set()
    if any(one.get("problem") != UNKNOWN_FIELD for one in problems):
        return set()
    return {str(one.get("field")) for one in problems}


def without(body: bytes, fields: Iterable[str]) -> bytes:
    """An encoded body without these fields; the same bytes where it has none of them."""
    value, found = json.loads(body), False
    for field in fields:
        *folders, last = field.split(".")
        at = value
        for name in folders:
            at = at.get(name) if isinstance(at, dict) else None
        if isinstance(at, dict) and last in at:
            found = True
            del at[last]
    return canonical(value) if found else body


def accepts(model: tasks.Model, body: bytes) -> bool:
    """Whether an encoded body is still one of the model's kind: only optional fields are gone."""
    try:
        type(model).model_validate_json(body)
    except ValidationError:
        return False
    return True


def canonical(value: Any) -> bytes:
    """The one spelling of a JSON value: sorted keys, no spaces. For hashes and comparisons.

    Raises RaeError `invalid_json` for half a surrogate pair.
    """
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    try:
        return text.encode()
    except UnicodeEncodeError as error:
        raise RaeError("invalid_json", "a string holds half a surrogate pair") from error
