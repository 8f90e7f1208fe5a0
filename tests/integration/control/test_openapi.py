"""`/openapi.json` is what control does: every rule, every field, every answer."""

from __future__ import annotations

import json
import re
from typing import Any

from rae_control.api.openapi import document
from rae_control.api.operation import BYTES
from rae_control.api.operations import OPERATIONS
from rae_control.mesh.mesh import Mesh
from rae_control.server.app import create_app
from rae_protocol.errors import TABLE
from tests.integration.control.harness import Api


def documented() -> set[tuple[str, str]]:
    return {(op.method, op.path) for op in OPERATIONS}


def test_the_document_has_every_rule_and_no_other(mesh: Mesh) -> None:
    rules = set()
    for rule in create_app(mesh).url_map.iter_rules():
        path = re.sub(r"<(?:[a-z]+(?:\([^)]*\))?:)?([a-z_0-9]+)>", r"{\1}", rule.rule)
        rules |= {
            (method, path) for method in rule.methods or () if method not in {"HEAD", "OPTIONS"}
        }
    own = {(method, path) for method, path in rules if not path.startswith("/api/v1")}
    assert own == documented()
    assert {(method, f"/api/v1{path}") for method, path in own} | own == rules


def test_the_document_is_served_to_everybody_and_names_both_prefixes(api: Api) -> None:
    for path in ("/openapi.json", "/api/v1/openapi.json"):
        answer = api.client.get(path)
        assert (answer.status_code, answer.mimetype) == (200, "application/json")
        assert answer.data == document(OPERATIONS)
    spec = json.loads(document(OPERATIONS))
    assert [server["url"] for server in spec["servers"]] == ["/", "/api/v1"]
    assert set(spec["components"]["securitySchemes"]) == {"bearer", "signature", "enrolment"}


def test_every_reference_leads_somewhere_and_every_error_is_listed() -> None:
    text = document(OPERATIONS).decode()
    spec = json.loads(text)
    names = set(re.findall(r'"#/components/schemas/([A-Za-z]+)"', text))
    assert names <= set(spec["components"]["schemas"])
    ids = re.findall(r'"operationId":"([^"]+)"', text)
    assert len(set(ids)) == len(ids)
    told = {rc for op in OPERATIONS for rc in op.rcs}
    # The server gives these for any path and method, and for what has neither.
    assert told | {"method_not_allowed", "not_found", "invalid_request"} == set(TABLE)


def test_every_query_parameter_is_the_codes(api: Api) -> None:
    api.join("n1")
    ref: dict[str, Any] = {"task_id": api.submit({"kind": "cli"})[0]["task_id"], "node_id": "n1"}
    api.take("n1")
    for op in OPERATIONS:
        if not op.query or "inputs" in op.path:
            continue
        path = op.path.format(**ref) + "?surprise=1"
        if op.auth == "node":
            answer = api.node("n1", op.method, path)
        else:
            answer = api.rae(op.method, path, who="root")
        assert answer.json["rc"] == "invalid_query"
        assert answer.json["detail"]["known"] == sorted(op.query), op.name


def test_bytes_have_a_head_beside_them() -> None:
    paths = json.loads(document(OPERATIONS))["paths"]
    assert all("head" in paths[op.path] for op in OPERATIONS if op.answer == BYTES)
