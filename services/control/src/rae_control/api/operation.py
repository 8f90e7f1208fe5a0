"""What an operation of the API is; `operations` has the table of all."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from flask import Response

from rae_protocol import models as m
from rae_protocol.names import (
    MAX_JSON_BYTES,
    MAX_NODE_BYTES,
    MAX_WAIT_S,
    NODE_ID_PATTERN,
    SHA256_PATTERN,
    TASK_ID_PATTERN,
    TaskState,
)

Json = dict[str, Any]
BYTES, TEXT = "application/octet-stream", "text/plain"
MULTIPART = "multipart/form-data"

# Who may call, and what can go wrong in finding that out.
AUTH_ERRORS: dict[str, tuple[str, ...]] = {
    "none": (),
    "register": ("unauthorized", "bad_signature", "skew", "replayed_nonce", "retry_signed",
                 "not_enrolled", "node_revoked", "wrong_node"),
    "node": ("unauthorized", "bad_signature", "skew", "replayed_nonce", "retry_signed",
             "register_again", "superseded", "forbidden", "length_required",
             "body_too_large", "body_too_slow", "invalid_body"),
    **dict.fromkeys(("read_own", "read", "submit", "admin"), ("unauthorized", "forbidden")),
}  # fmt: skip
BODY_ERRORS = ("invalid_json", "invalid_body", "length_required", "body_too_large",
               "body_too_slow", "unsupported_media")  # fmt: skip
ALWAYS = ("rate_limited", "internal", "ledger_unavailable", "not_ready")

COUNT: Json = {"type": "integer", "minimum": 0, "maximum": 2**53}
WAIT: Json = {"wait": {"type": "number", "minimum": 0, "maximum": MAX_WAIT_S}}
STATE: Json = {"state": {"enum": [state.value for state in TaskState]}}
WORD: Json = {"type": "string"}
FEED: Json = {**WAIT, "after": COUNT, "incarnation": WORD,
               "limit": {"type": "integer", "minimum": 1}}  # fmt: skip

PARAMETERS: dict[str, Json] = {
    "task_id": {"type": "string", "pattern": TASK_ID_PATTERN},
    "node_id": {"type": "string", "pattern": NODE_ID_PATTERN},
    "sha256": {"type": "string", "pattern": SHA256_PATTERN},
    "name": {"type": "string", "minLength": 1, "maxLength": 255},
    "name_or_id": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$"},
}


@dataclass(frozen=True, slots=True, eq=False)
class Operation:
    """One method of one path. `verbs` are the values of `{verb}` in it.

    `handler` takes the mesh, then what the table says that there is: the caller (a NodeEntry, or
    whose token it is), the body, the query; at last the path's parts by name. The body is a model,
    or bytes where it may be more than one, or a function that reads them where more must be known
    before. It returns a model, or a response.
    """

    method: str
    path: str
    auth: str
    handler: Callable[..., Response | m.Model]
    answer: type[m.Model] | str
    body: type[m.Model] | str | tuple[type[m.Model] | str, ...] = ()
    status: tuple[int, ...] = (200,)
    query: Json = field(default_factory=dict)
    errors: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()
    limit: int = 0  # bytes of the body; 0 is what its kind of caller may send
    each: int = 64 * 1024  # so many bytes of a node count as one more call

    @property
    def summary(self) -> str:
        """What it does, in a line: the handler's own."""
        return (self.handler.__doc__ or self.name).partition("\n")[0].removesuffix(".")

    @property
    def name(self) -> str:
        """Unique and stable: the operationId."""
        words = self.path.replace("{", "").replace("}", "").replace(".", "/").split("/")
        return "_".join([self.method.lower(), *filter(None, words)])

    @property
    def rule(self) -> str:
        """The path as Flask has it."""
        verb = f"<any({', '.join(self.verbs)}):verb>"
        path = self.path.replace("{verb}", verb).replace("{name}", "<path:name>")
        return re.sub(r"{([a-z_0-9]+)}", r"<\1>", path)

    @property
    def most(self) -> int:
        """Bytes of a body."""
        return self.limit or (MAX_NODE_BYTES if self.auth == "node" else MAX_JSON_BYTES)

    @property
    def types(self) -> dict[str, type]:
        """Of the query's values."""
        kinds = {"number": float, "integer": int}
        return {
            name: type(schema["enum"][0]) if "enum" in schema else kinds.get(schema["type"], str)
            for name, schema in self.query.items()
        }

    @property
    def may_be_empty(self) -> bool:
        """An operator's note may be left out."""
        return self.body in {m.OperatorNote, m.CancelRequest}

    @property
    def bodies(self) -> tuple[type[m.Model] | str, ...]:
        """What may be sent."""
        return self.body if isinstance(self.body, tuple) else (self.body,)

    @property
    def rcs(self) -> tuple[str, ...]:
        """Every error that the operation may answer."""
        media: tuple[str, ...] = BODY_ERRORS if self.bodies else ()
        if self.bodies == (BYTES,):
            media = ("invalid_body", "length_required", "body_too_large", "body_too_slow")
        query = ("invalid_query",) if self.query else ()
        return tuple(
            dict.fromkeys([*AUTH_ERRORS[self.auth], *media, *query, *self.errors, *ALWAYS])
        )
