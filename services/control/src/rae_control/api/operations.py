"""Every operation of the API in one table: Flask's rules and `/openapi.json` are made from it.

A test holds real answers to its models.
"""

from __future__ import annotations

from flask import Response

from rae_control.api import admin, nodes, tasks, work
from rae_control.api.openapi import document
from rae_control.api.operation import (
    BYTES,
    COUNT,
    FEED,
    MULTIPART,
    STATE,
    TEXT,
    WAIT,
    WORD,
    Operation,
)
from rae_control.service import attempts
from rae_protocol import models as m
from rae_protocol.names import MAX_BLOB_BYTES, MAX_REGISTER_BYTES, MAX_RESULT_BYTES


def _openapi(_mesh: object) -> Response:
    """This document."""
    return Response(document(OPERATIONS), mimetype="application/json")


_LEASE = ("stale_lease",)
_SUBMIT = ("dependency_cycle", "unknown_dependency", "unknown_input", "task_id_taken",
           "task_conflict", "too_many_lanes", "queue_full", "disk_low")  # fmt: skip
_BLOB_HEADERS = ("ETag",)

OPERATIONS: tuple[Operation, ...] = (
    Operation("POST", "/nodes/register", "register", nodes.register, m.Registered,
              m.RegisterRequest, errors=("node_id_in_use", "wrong_peer", "whois_unavailable"),
              limit=MAX_REGISTER_BYTES),
    Operation("POST", "/nodes/heartbeat", "node", nodes.heartbeat, m.HeartbeatAnswer, m.Heartbeat,
              errors=("wrong_node",), each=1024),
    Operation("POST", "/nodes/goodbye", "node", nodes.goodbye, m.NodeView, m.Goodbye,
              errors=("wrong_node",)),
    Operation("GET", "/tasks/poll", "node", work.poll, m.PollAnswer,
              query={**WAIT, "slots": WORD,
                     "vram_free_mb": {"type": "number", "minimum": 0, "maximum": 2**53}}),
    Operation("POST", "/tasks/ack", "node", attempts.ack, m.ResultAnswer, m.Ack, errors=_LEASE),
    Operation("POST", "/tasks/progress", "node", attempts.progress, m.ResultAnswer, m.Progress,
              errors=_LEASE),
    Operation("POST", "/tasks/log", "node", attempts.write_log, m.ResultAnswer, m.LogChunk,
              errors=(*_LEASE, "log_gap", "disk_low")),
    Operation("POST", "/tasks/result", "node", work.result, m.ResultAnswer, (m.Result, MULTIPART),
              errors=(*_LEASE, "artifact_mismatch", "disk_low"), limit=MAX_RESULT_BYTES,
              each=1024 * 1024),
    Operation("POST", "/tasks/yield", "node", attempts.hand_back, m.ResultAnswer, m.YieldRequest,
              errors=_LEASE),
    Operation("GET", "/tasks/{task_id}/inputs/{name}", "node", work.task_input, BYTES,
              query={"attempt": COUNT, "lease_id": WORD}, headers=_BLOB_HEADERS,
              errors=(*_LEASE, "unknown_task", "unknown_lease_input", "not_found")),
    Operation("GET", "/nodes", "read", nodes.list_nodes, m.NodeList,
              query={"all": {"enum": [0, 1]}}),
    Operation("POST", "/nodes/enrol", "admin", nodes.enrol, m.Enrolled, m.EnrolRequest,
              status=(201,)),
    Operation("GET", "/nodes/{node_id}", "read", nodes.one_node, m.NodeView,
              errors=("unknown_node", "not_found")),
    Operation("POST", "/nodes/{node_id}/{verb}", "admin", nodes.node_verb, m.NodeView,
              m.OperatorNote, verbs=("drain", "resume", "revoke"),
              errors=("unknown_node", "node_revoked", "not_found")),
    Operation("POST", "/tasks", "submit", tasks.submit, m.Submitted, (m.TaskSpec, m.SubmitMany),
              status=(201,), errors=_SUBMIT),
    Operation("GET", "/tasks", "read_own", tasks.list_tasks, m.TaskList,
              query={**STATE, "kind": WORD, "label": {"type": "string", "pattern": "="},
                     "node": WORD, "submitter": WORD, "limit": {"type": "integer", "minimum": 1},
                     "cursor": COUNT}),
    Operation("GET", "/tasks/{task_id}", "read_own", tasks.one_task, m.TaskView,
              query={**WAIT, **STATE}, errors=("unknown_task", "not_found")),
    Operation("GET", "/tasks/{task_id}/events", "read_own", tasks.task_events, m.EventList,
              query=FEED, errors=("unknown_task", "unknown_cursor", "not_found")),
    Operation("GET", "/events", "read_own", tasks.events, m.EventList, query=FEED,
              errors=("unknown_cursor",)),
    Operation("GET", "/tasks/{task_id}/log", "read_own", tasks.log, TEXT,
              query={**WAIT, "attempt": COUNT, "offset": COUNT},
              headers=("X-RAE-Attempt", "X-RAE-Next-Offset", "X-RAE-Complete"),
              errors=("unknown_task", "not_found")),
    Operation("GET", "/tasks/{task_id}/result", "read_own", tasks.result, m.TaskResult,
              errors=("unknown_task", "result_dropped", "not_found")),
    Operation("GET", "/tasks/{task_id}/artifacts/{name}", "read_own", tasks.artifact, BYTES,
              headers=_BLOB_HEADERS, errors=("unknown_task", "unknown_artifact", "not_found")),
    Operation("POST", "/tasks/{task_id}/{verb}", "submit", tasks.task_verb, m.TaskView,
              m.CancelRequest, verbs=("cancel", "requeue"),
              errors=("unknown_task", "already_finished", "not_requeueable", "too_many_lanes",
                      "queue_full", "not_found")),
    Operation("PUT", "/blobs/{sha256}", "submit", admin.put_blob, m.BlobStored, BYTES,
              status=(200, 201), errors=("blob_mismatch", "blobs_full", "disk_low", "not_found"),
              limit=MAX_BLOB_BYTES),
    Operation("GET", "/blobs/{sha256}", "submit", admin.get_blob, BYTES, headers=_BLOB_HEADERS,
              errors=("unknown_blob", "not_found")),
    Operation("POST", "/tokens", "admin", admin.add_token, m.TokenView, m.TokenRequest,
              status=(201,), errors=("token_exists",)),
    Operation("GET", "/tokens", "admin", admin.list_tokens, m.TokenList),
    Operation("POST", "/tokens/{name_or_id}/revoke", "admin", admin.revoke_token, m.TokenView,
              m.OperatorNote, errors=("unknown_token", "not_found")),
    Operation("GET", "/healthz", "none", admin.healthz, m.Health),
    Operation("GET", "/readyz", "none", admin.readyz, m.Ready, errors=("disk_low",)),
    Operation("GET", "/metrics", "read", admin.metrics, TEXT),
    Operation("GET", "/openapi.json", "none", _openapi, "application/json"),
)  # fmt: skip
