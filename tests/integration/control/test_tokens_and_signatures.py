"""Tokens, signatures and envelopes."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from rae_control.mesh.mesh import Mesh
from rae_protocol import signing
from tests.integration.control.harness import ECHO, Api, ManualClock, refused


def test_without_a_valid_token_control_says_nothing(api: Api) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eDp5"}):
        for path in ("/tasks", "/nodes", "/events", "/tasks/x", "/tokens"):
            assert api.client.get(path, headers=headers).json["rc"] == "unauthorized"
    assert api.client.get("/healthz").status_code == 200
    assert api.client.get("/readyz").status_code == 200


def test_signatures_are_checked_for_time_nonce_body_and_path(api: Api, clock: ManualClock) -> None:
    api.join("n1")
    beat = {"node_id": "n1", "leases": []}
    raw = json.dumps(beat).encode()
    key = signing.session_key(api.secrets["n1"], api.tokens["n1"])

    def fields(path: str = "/nodes/heartbeat", body: bytes = raw, age: float = 0) -> Any:
        return signing.signed_fields(key, "n1", "POST", path, clock.wall() - age, body)

    def send(given: Any) -> Any:
        return api.node("n1", "POST", "/nodes/heartbeat", raw, fields=given)

    good = fields()
    assert send(good).status_code == 200
    refused(send(good), "replayed_nonce")
    refused(send(fields(age=61)), "skew")
    refused(send(fields(age=-7)), "skew")
    assert send(fields(age=59)).status_code == send(fields(age=-5)).status_code == 200
    refused(send(fields(body=b"{}")), "bad_signature")
    refused(send(fields(path="/nodes/goodbye")), "bad_signature")
    for broken in (
        "",
        "x",
        'keyid="n1"',
        good.header() + ', ts="1"',
        good.header().replace("n1", "n2"),
    ):
        headers = {"Authorization": f"Bearer {api.tokens['n1']}", "RAE-Signature": broken}
        answer = api.client.post("/nodes/heartbeat", json=beat, headers=headers)
        refused(answer, "bad_signature")


def test_a_bearer_token_alone_is_not_enough_for_an_hmac_node(api: Api) -> None:
    api.join("n1")
    headers = {"Authorization": f"Bearer {api.tokens['n1']}"}
    refused(api.client.get("/tasks/poll", headers=headers), "bad_signature")


def test_tokens_of_other_nodes_and_of_other_kinds(api: Api) -> None:
    api.join("n1")
    api.join("n2", machine="m2")
    api.submit(ECHO)
    ref = api.take("n1")
    refused(api.node("n2", "POST", "/tasks/result", {**ref, "status": "succeeded"}), "stale_lease")
    refused(api.node("n2", "POST", "/tasks/yield", {**ref, "reason": "owner"}), "stale_lease")
    refused(api.node("n2", "POST", "/nodes/heartbeat", {"node_id": "n1"}), "wrong_node")
    refused(
        api.node("n2", "GET", f"/tasks/{ref['task_id']}/inputs/x?lease_id={ref['lease_id']}"),
        "stale_lease",
    )
    refused(api.rae("GET", "/tasks/poll"), "forbidden")
    headers = {"Authorization": f"Bearer {api.tokens['n1']}"}
    refused(api.client.get("/tasks", headers=headers), "forbidden")
    assert api.task(ref["task_id"])["state"] == "running"


def test_an_envelope_is_for_one_node_and_signed_by_control(api: Api, mesh: Mesh) -> None:
    api.join("n1")
    api.submit(ECHO)
    envelope = None
    while envelope is None:
        envelope = api.poll("n1").get("task")
    payload = signing.open_envelope(envelope, mesh.auth.public_keys)
    assert payload["node_id"] == "n1"
    other = base64.b64encode(b'{"node_id": "n1"}').decode()
    with pytest.raises(signing.EnvelopeError):
        signing.open_envelope({**envelope, "payload": other}, mesh.auth.public_keys)


def test_tokens_are_listed_without_their_text_and_end_at_once(api: Api) -> None:
    made = api.rae("POST", "/tokens", {"name": "ci", "role": "submit"}, who="root").json
    headers = {"Authorization": f"Bearer {made['token']}"}
    assert api.client.get("/tasks", headers=headers).status_code == 200
    refused(api.rae("POST", "/tokens", {"name": "ci", "role": "read"}, who="root"), "token_exists")
    assert "token" not in api.rae("GET", "/tokens", who="root").json["tokens"][-1]
    assert api.rae("POST", "/tokens/ci/revoke", who="root").status_code == 200
    refused(api.client.get("/tasks", headers=headers), "unauthorized")
    refused(api.rae("POST", "/tokens/unknown/revoke", who="root"), "unknown_token")
