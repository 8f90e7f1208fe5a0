"""Flask's rules out of the table of operations, at the root and under /api/v1."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from flask import Flask, Response

from rae_control import wire
from rae_control.api.operation import BYTES, Operation
from rae_control.api.operations import OPERATIONS

if TYPE_CHECKING:
    from rae_control.mesh.mesh import Mesh

PREFIXES = ("", "/api/v1")


def add_routes(app: Flask, mesh: Mesh) -> None:
    """All of them."""
    for prefix in PREFIXES:
        for operation in OPERATIONS:
            app.add_url_rule(
                f"{prefix}{operation.rule}", f"{prefix} {operation.name}",
                partial(_serve, mesh, operation), methods=[operation.method],
            )  # fmt: skip


def _serve(mesh: Mesh, operation: Operation, **path: str) -> Response:
    """The caller first, then the body, then the query; the handler has the last word."""
    given: list[Any] = [mesh]
    if operation.auth == "node":
        entry, body = wire.node_call(mesh, operation.most, operation.each)
        given.append(entry)
        if operation.body:
            given.append(_parsed(operation, body))
    else:
        read = partial(wire.read_body, operation.most)
        if operation.auth not in {"none", "register"}:
            given.append(wire.role_call(mesh, operation.auth))
        if operation.auth == "register" or operation.body == BYTES:
            given.append(read)
        elif operation.body:
            given.append(_parsed(operation, read()))
    if operation.query:
        given.append(wire.query(operation.types))
    found = operation.handler(*given, **path)
    return found if isinstance(found, Response) else wire.answer(found, operation.status[0])


def _parsed(operation: Operation, body: wire.Body) -> Any:
    if isinstance(operation.body, type):
        return wire.parse_json(operation.body, body, empty=operation.may_be_empty)
    return body
