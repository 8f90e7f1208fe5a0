"""`/openapi.json`: OpenAPI 3.1 out of the table of operations and the pydantic models."""

from __future__ import annotations

import re
from collections import defaultdict
from functools import cache
from typing import Any

from pydantic import BaseModel
from pydantic.json_schema import models_json_schema

from rae_control import __version__
from rae_control.api.operation import (
    BYTES,
    MULTIPART,
    PARAMETERS,
    TEXT,
    Json,
    Operation,
)
from rae_protocol import models
from rae_protocol.errors import TABLE

_REF = "#/components/schemas/{model}"
_SECURITY: dict[str, list[Json]] = {
    "none": [],
    "register": [{"enrolment": []}, {"bearer": []}],
    "node": [{"bearer": [], "signature": []}, {"bearer": []}],
}
_SCHEMES: Json = {
    "bearer": {
        "type": "http",
        "scheme": "bearer",
        "description": "A token with a role (submit, read, admin); a node's session token;"
        " or, to register, a bearer node's enrolment secret.",
    },
    "signature": {
        "type": "apiKey",
        "in": "header",
        "name": "RAE-Signature",
        "description": 'keyid="NODE", ts="UNIX SECONDS", nonce="16 bytes in base64url", sig="hex":'
        " HMAC-SHA256 over the request, beside the session's bearer token; every hmac node signs"
        " every call (docs/protocol.md, part 4).",
    },
    "enrolment": {
        "type": "apiKey",
        "in": "header",
        "name": "Authorization",
        "description": 'RAE-HMAC keyid="NODE", ts="…", nonce="…", sig="…": the same signature, by'
        " the enrolment secret.",
    },
}
_MULTIPART: Json = {
    "type": "object",
    "required": ["metadata"],
    "properties": {"metadata": {"$ref": _REF.format(model="Result")}},
    "patternProperties": {"^artifacts/": {"type": "string", "format": "binary"}},
    "additionalProperties": False,
}


@cache
def document(operations: tuple[Operation, ...]) -> bytes:
    """The document as it is served. The same for every mesh, so it is made once."""
    used: set[type[BaseModel]] = {
        model
        for operation in operations
        for model in (*operation.bodies, operation.answer)
        if not isinstance(model, str)
    } | {models.ErrorBody, models.LeasedTask}
    ordered: list[type[BaseModel]] = sorted(used, key=lambda model: model.__name__)
    _, schemas = models_json_schema([(m, "validation") for m in ordered], ref_template=_REF)
    paths: defaultdict[str, Json] = defaultdict(dict)
    for operation in operations:
        paths[operation.path][operation.method.lower()] = _operation(operation)
        if operation.answer == BYTES:
            head = _operation(operation)
            head["operationId"] = head["operationId"].replace("get_", "head_", 1)
            paths[operation.path]["head"] = _without_content(head)
    return models.canonical(
        {
            "openapi": "3.1.0",
            "info": {
                "title": "RAE Mesh control",
                "version": __version__,
                "description": "docs/protocol.md tells the whole protocol.",
            },
            "servers": [{"url": "/"}, {"url": "/api/v1"}],
            "paths": paths,
            "components": {"schemas": schemas["$defs"], "securitySchemes": _SCHEMES},
        }
    )


def _operation(op: Operation) -> Json:
    out: Json = {
        "operationId": op.name,
        "summary": op.summary,
        "security": _SECURITY.get(op.auth, [{"bearer": []}]),
        "parameters": _parameters(op),
        "responses": _responses(op),
    }
    if op.auth not in _SECURITY:
        out["description"] = f"Needs the right `{op.auth}`."
    if op.bodies:
        out["requestBody"] = {"required": not op.may_be_empty, "content": _content(op)}
    return out


def _content(op: Operation) -> Json:
    refs = [{"$ref": _REF.format(model=m.__name__)} for m in op.bodies if not isinstance(m, str)]
    out: Json = {}
    if refs:
        out["application/json"] = {"schema": refs[0] if len(refs) == 1 else {"anyOf": refs}}
    if BYTES in op.bodies:
        out[BYTES] = {"schema": {}}
    if MULTIPART in op.bodies:
        encoding = {"metadata": {"contentType": "application/json"}}
        out[MULTIPART] = {"schema": _MULTIPART, "encoding": encoding}
    return out


def _parameters(op: Operation) -> list[Json]:
    out = []
    for name in re.findall(r"{([a-z_0-9]+)}", op.path):
        schema = {"enum": list(op.verbs)} if name == "verb" else PARAMETERS[name]
        out.append({"name": name, "in": "path", "required": True, "schema": schema})
    return out + [
        {"name": name, "in": "query", "required": False, "schema": schema}
        for name, schema in op.query.items()
    ]


def _responses(op: Operation) -> Json:
    out: dict[str, Any] = {}
    for status in op.status:
        answer: Json = {"description": op.summary}
        if isinstance(op.answer, str):
            schema: Json = {"type": "object"} if op.answer not in {BYTES, TEXT} else {}
            answer["content"] = {op.answer: {"schema": schema}}
        else:
            ref = {"$ref": _REF.format(model=op.answer.__name__)}
            answer["content"] = {"application/json": {"schema": ref}}
        if op.headers:
            answer["headers"] = {name: {"schema": {"type": "string"}} for name in op.headers}
        out[str(status)] = answer
    by_status: defaultdict[int, list[str]] = defaultdict(list)
    for rc in op.rcs:
        by_status[TABLE[rc][0]].append(rc)
    for status, rcs in sorted(by_status.items()):
        out[str(status)] = {
            "description": ", ".join(f"`{rc}`" for rc in rcs),
            "content": {"application/json": {"schema": {"$ref": _REF.format(model="ErrorBody")}}},
        }
    return out


def _without_content(operation: Json) -> Json:
    for response in operation["responses"].values():
        response.pop("content", None)
    return operation
