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
    return Response(document(OPERATIONS), mimetype="application/json")


_LEASE = ("stale_lease",)
_SUBMIT = ("dependency_cycle", "unknown_dependency", "unknown_input", "task_id_taken",
           "task_conflict", "too_many_lanes", "queue_full", "disk_low")  # fmt: skip
_BLOB_HEADERS = ("ETag",)

OPERATIONS: tuple[Operation, ...] = (
    Operation("POST", "/nodes/register", "register", "A node introduces itself",
              nodes.register, m.Registered, m.RegisterRequest,
              errors=("node_id_in_use", "wrong_peer", "whois_unavailable"),
              limit=MAX_REGISTER_BYTES),
    Operation("POST", "/nodes/heartbeat", "node", "A node is alive",
              nodes.heartbeat, m.HeartbeatAnswer, m.Heartbeat, errors=("wrong_node",), each=1024),
    Operation("POST", "/nodes/goodbye", "node", "A node leaves; its work is dead",
              nodes.goodbye, m.NodeView, m.Goodbye, errors=("wrong_node",)),
    Operation("GET", "/tasks/poll", "node", "Long poll for a task or orders",
              work.poll, m.PollAnswer,
              query={**WAIT, "slots": WORD,
                     "vram_free_mb": {"type": "number", "minimum": 0, "maximum": 2**53}}),
    Operation("POST", "/tasks/ack", "node", "The node takes the task on",
              attempts.ack, m.ResultAnswer, m.Ack, errors=_LEASE),
    Operation("POST", "/tasks/progress", "node", "How far the task is",
              attempts.progress, m.ResultAnswer, m.Progress, errors=_LEASE),
    Operation("POST", "/tasks/log", "node", "Bytes of the log",
              attempts.write_log, m.ResultAnswer, m.LogChunk,
              errors=(*_LEASE, "log_gap", "disk_low")),
    Operation("POST", "/tasks/result", "node", "How the attempt ended, with its artifacts",
              work.result, m.ResultAnswer, (m.Result, MULTIPART),
              errors=(*_LEASE, "artifact_mismatch", "disk_low"), limit=MAX_RESULT_BYTES,
              each=1024 * 1024),
    Operation("POST", "/tasks/yield", "node", "The work was stopped and is handed back",
              attempts.hand_back, m.ResultAnswer, m.YieldRequest, errors=_LEASE),
    Operation("GET", "/tasks/{task_id}/inputs/{name}", "node", "A file that the task reads",
              work.task_input, BYTES, query={"attempt": COUNT, "lease_id": WORD},
              headers=_BLOB_HEADERS,
              errors=(*_LEASE, "unknown_task", "unknown_lease_input", "not_found")),
    Operation("GET", "/nodes", "read", "Online nodes, or all",
              nodes.list_nodes, m.NodeList, query={"all": {"enum": [0, 1]}}),
    Operation("POST", "/nodes/enrol", "admin", "Admit a node",
              nodes.enrol, m.Enrolled, m.EnrolRequest, status=(201,)),
    Operation("GET", "/nodes/{node_id}", "read", "One node",
              nodes.one_node, m.NodeView, errors=("unknown_node", "not_found")),
    Operation("POST", "/nodes/{node_id}/{verb}", "admin", "Operate a node",
              nodes.node_verb, m.NodeView, m.OperatorNote, verbs=("drain", "resume", "revoke"),
              errors=("unknown_node", "not_found")),
    Operation("POST", "/tasks", "submit", "Submit one task or several, all or none",
              tasks.submit, m.Submitted, (m.TaskSpec, m.SubmitMany), status=(201,),
              errors=_SUBMIT),
    Operation("GET", "/tasks", "read_own", "A page of tasks, newest first",
              tasks.list_tasks, m.TaskList,
              query={**STATE, "kind": WORD, "label": {"type": "string", "pattern": "="},
                     "node": WORD, "submitter": WORD, "limit": {"type": "integer", "minimum": 1},
                     "cursor": COUNT}),
    Operation("GET", "/tasks/{task_id}", "read_own", "One task, with why it does not run",
              tasks.one_task, m.TaskView, query={**WAIT, **STATE},
              errors=("unknown_task", "not_found")),
    Operation("GET", "/tasks/{task_id}/events", "read_own", "A task's history",
              tasks.task_events, m.EventList, query=FEED,
              errors=("unknown_task", "unknown_cursor", "not_found")),
    Operation("GET", "/events", "read_own", "Every transition, oldest first",
              tasks.events, m.EventList, query=FEED, errors=("unknown_cursor",)),
    Operation("GET", "/tasks/{task_id}/log", "read_own", "The log of an attempt",
              tasks.log, TEXT, query={**WAIT, "attempt": COUNT, "offset": COUNT},
              headers=("X-RAE-Attempt", "X-RAE-Next-Offset", "X-RAE-Complete"),
              errors=("unknown_task", "not_found")),
    Operation("GET", "/tasks/{task_id}/result", "read_own", "What the task returned",
              tasks.result, m.TaskResult, errors=("unknown_task", "result_dropped", "not_found")),
    Operation("GET", "/tasks/{task_id}/artifacts/{name}", "read_own", "An artifact's bytes",
              tasks.artifact, BYTES, headers=_BLOB_HEADERS,
              errors=("unknown_task", "unknown_artifact", "not_found")),
    Operation("POST", "/tasks/{task_id}/{verb}", "submit", "Cancel, or queue again",
              tasks.task_verb, m.TaskView, m.CancelRequest, verbs=("cancel", "requeue"),
              errors=("unknown_task", "already_finished", "not_requeueable", "too_many_lanes",
                      "queue_full", "not_found")),
    Operation("PUT", "/blobs/{sha256}", "submit", "Upload a blob",
              admin.put_blob, m.BlobStored, BYTES, status=(200, 201),
              errors=("blob_mismatch", "blobs_full", "disk_low", "not_found"),
              limit=MAX_BLOB_BYTES),
    Operation("GET", "/blobs/{sha256}", "submit", "A blob's bytes; HEAD asks whether it is there",
              admin.get_blob, BYTES, headers=_BLOB_HEADERS, errors=("unknown_blob", "not_found")),
    Operation("POST", "/tokens", "admin", "Make a token; its text is in this answer only",
              admin.add_token, m.TokenView, m.TokenRequest, status=(201,),
              errors=("token_exists",)),
    Operation("GET", "/tokens", "admin", "All tokens, without their texts",
              admin.list_tokens, m.TokenList),
    Operation("POST", "/tokens/{name_or_id}/revoke", "admin", "End a token",
              admin.revoke_token, m.TokenView, m.OperatorNote,
              errors=("unknown_token", "not_found")),
    Operation("GET", "/healthz", "none", "Does the process answer?",
              admin.healthz, m.Health),
    Operation("GET", "/readyz", "none", "Can it take submits: is there room for them?",
              admin.readyz, m.Ready, errors=("disk_low",)),
    Operation("GET", "/metrics", "read", "For Prometheus, text format 0.0.4",
              admin.metrics, TEXT),
    Operation("GET", "/openapi.json", "none", "This document",
              _openapi, "application/json"),
)  # fmt: skip
