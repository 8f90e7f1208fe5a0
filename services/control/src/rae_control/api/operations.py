"""Every operation of the API in one table; `/openapi.json` is made from it.

A test holds it to Flask's rules in both directions, and real answers to its models.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from rae_protocol import models as m
from rae_protocol.names import (
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

_COUNT: Json = {"type": "integer", "minimum": 0, "maximum": 2**53}
WAIT: Json = {"wait": {"type": "number", "minimum": 0, "maximum": MAX_WAIT_S}}
_STATE: Json = {"state": {"enum": [state.value for state in TaskState]}}
_TEXT: Json = {"type": "string"}
_FEED: Json = {**WAIT, "after": _COUNT, "incarnation": _TEXT,
               "limit": {"type": "integer", "minimum": 1}}  # fmt: skip

PARAMETERS: dict[str, Json] = {
    "task_id": {"type": "string", "pattern": TASK_ID_PATTERN},
    "node_id": {"type": "string", "pattern": NODE_ID_PATTERN},
    "sha256": {"type": "string", "pattern": SHA256_PATTERN},
    "name": {"type": "string", "minLength": 1, "maxLength": 255},
    "name_or_id": {"type": "string", "pattern": "^[A-Za-z0-9][A-Za-z0-9_-]{0,31}$"},
}


@dataclass(frozen=True, slots=True)
class Operation:
    """One method of one path. `verbs` are the values of `{verb}` in it."""

    method: str
    path: str
    auth: str
    summary: str
    answer: type[m.Model] | str
    body: type[m.Model] | str | tuple[type[m.Model] | str, ...] = ()
    status: tuple[int, ...] = (200,)
    query: Json = field(default_factory=dict)
    errors: tuple[str, ...] = ()
    verbs: tuple[str, ...] = ()
    headers: tuple[str, ...] = ()

    @property
    def name(self) -> str:
        """Unique and stable: the operationId."""
        words = self.path.replace("{", "").replace("}", "").replace(".", "/").split("/")
        return "_".join([self.method.lower(), *filter(None, words)])

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


_LEASE = ("stale_lease",)
_SUBMIT = ("dependency_cycle", "unknown_dependency", "unknown_input", "task_id_taken",
           "task_conflict", "too_many_lanes", "queue_full", "disk_low")  # fmt: skip
_BLOB_HEADERS = ("ETag",)

OPERATIONS: tuple[Operation, ...] = (
    Operation("POST", "/nodes/register", "register", "A node introduces itself", m.Registered,
              m.RegisterRequest, errors=("node_id_in_use", "wrong_peer", "whois_unavailable")),
    Operation("POST", "/nodes/heartbeat", "node", "A node is alive", m.HeartbeatAnswer,
              m.Heartbeat, errors=("wrong_node",)),
    Operation("POST", "/nodes/goodbye", "node", "A node leaves; its work is dead", m.NodeView,
              m.Goodbye, errors=("wrong_node",)),
    Operation("GET", "/tasks/poll", "node", "Long poll for a task or orders", m.PollAnswer,
              query={**WAIT, "slots": _TEXT, "vram_free_mb": {"type": "number", "minimum": 0,
                                                              "maximum": 2**53}}),
    Operation("POST", "/tasks/ack", "node", "The node takes the task on", m.ResultAnswer, m.Ack,
              errors=_LEASE),
    Operation("POST", "/tasks/progress", "node", "How far the task is", m.ResultAnswer,
              m.Progress, errors=_LEASE),
    Operation("POST", "/tasks/log", "node", "Bytes of the log", m.ResultAnswer, m.LogChunk,
              errors=(*_LEASE, "log_gap", "disk_low")),
    Operation("POST", "/tasks/result", "node", "How the attempt ended, with its artifacts",
              m.ResultAnswer, (m.Result, MULTIPART),
              errors=(*_LEASE, "artifact_mismatch", "disk_low")),
    Operation("POST", "/tasks/yield", "node", "The work was stopped and is handed back",
              m.ResultAnswer, m.YieldRequest, errors=_LEASE),
    Operation("GET", "/tasks/{task_id}/inputs/{name}", "node", "A file that the task reads",
              BYTES, query={"attempt": _COUNT, "lease_id": _TEXT}, headers=_BLOB_HEADERS,
              errors=(*_LEASE, "unknown_task", "unknown_lease_input", "not_found")),
    Operation("GET", "/nodes", "read", "Online nodes, or all", m.NodeList,
              query={"all": {"enum": [0, 1]}}),
    Operation("POST", "/nodes/enrol", "admin", "Admit a node", m.Enrolled, m.EnrolRequest,
              status=(201,)),
    Operation("GET", "/nodes/{node_id}", "read", "One node", m.NodeView,
              errors=("unknown_node", "not_found")),
    Operation("POST", "/nodes/{node_id}/{verb}", "admin", "Operate a node", m.NodeView,
              m.OperatorNote, verbs=("drain", "resume", "revoke"),
              errors=("unknown_node", "node_revoked", "not_found")),
    Operation("POST", "/tasks", "submit", "Submit one task or several, all or none", m.Submitted,
              (m.TaskSpec, m.SubmitMany), status=(201,), errors=_SUBMIT),
    Operation("GET", "/tasks", "read_own", "A page of tasks, newest first", m.TaskList,
              query={**_STATE, "kind": _TEXT, "label": {"type": "string", "pattern": "="},
                     "node": _TEXT, "submitter": _TEXT, "limit": {"type": "integer", "minimum": 1},
                     "cursor": _COUNT}),
    Operation("GET", "/tasks/{task_id}", "read_own", "One task, with why it does not run",
              m.TaskView, query={**WAIT, **_STATE}, errors=("unknown_task", "not_found")),
    Operation("GET", "/tasks/{task_id}/events", "read_own", "A task's history", m.EventList,
              query=_FEED, errors=("unknown_task", "unknown_cursor", "not_found")),
    Operation("GET", "/events", "read_own", "Every transition, oldest first", m.EventList,
              query=_FEED, errors=("unknown_cursor",)),
    Operation("GET", "/tasks/{task_id}/log", "read_own", "The log of an attempt", TEXT,
              query={**WAIT, "attempt": _COUNT, "offset": _COUNT},
              headers=("X-RAE-Attempt", "X-RAE-Next-Offset", "X-RAE-Complete"),
              errors=("unknown_task", "not_found")),
    Operation("GET", "/tasks/{task_id}/result", "read_own", "What the task returned",
              m.TaskResult, errors=("unknown_task", "result_dropped", "not_found")),
    Operation("GET", "/tasks/{task_id}/artifacts/{name}", "read_own", "An artifact's bytes", BYTES,
              headers=_BLOB_HEADERS, errors=("unknown_task", "unknown_artifact", "not_found")),
    Operation("POST", "/tasks/{task_id}/{verb}", "submit", "Cancel, or queue again", m.TaskView,
              m.CancelRequest, verbs=("cancel", "requeue"),
              errors=("unknown_task", "already_finished", "not_requeueable", "too_many_lanes",
                      "queue_full", "not_found")),
    Operation("PUT", "/blobs/{sha256}", "submit", "Upload a blob", m.BlobStored, BYTES,
              status=(200, 201), errors=("blob_mismatch", "blobs_full", "disk_low", "not_found")),
    Operation("GET", "/blobs/{sha256}", "submit", "A blob's bytes; HEAD asks whether it is there",
              BYTES, headers=_BLOB_HEADERS, errors=("unknown_blob", "not_found")),
    Operation("POST", "/tokens", "admin", "Make a token; its text is in this answer only",
              m.TokenView, m.TokenRequest, status=(201,), errors=("token_exists",)),
    Operation("GET", "/tokens", "admin", "All tokens, without their texts", m.TokenList),
    Operation("POST", "/tokens/{name_or_id}/revoke", "admin", "End a token", m.TokenView,
              m.OperatorNote, errors=("unknown_token", "not_found")),
    Operation("GET", "/healthz", "none", "Does the process answer?", m.Health),
    Operation("GET", "/readyz", "none", "Can it take submits: is there room for them?",
              m.Ready, errors=("disk_low",)),
    Operation("GET", "/metrics", "read", "For Prometheus, text format 0.0.4", TEXT),
    Operation("GET", "/openapi.json", "none", "This document", "application/json"),
)  # fmt: skip
