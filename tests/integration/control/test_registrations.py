"""Registrations: what is read before the secret is known, refusals, limits."""

from __future__ import annotations

import json
from typing import Any

import pytest

from rae_control.ledger import nodes as ledger_nodes
from rae_control.mesh.mesh import Mesh
from rae_protocol import signing
from rae_protocol.errors import RaeError
from tests.integration.control.harness import Api, ManualClock, refused


def apply(api: Api, node_id: str, secret: str, body: bytes, **headers: str) -> Any:
    """Send a registration, signed with this secret."""
    path = "/nodes/register"
    made = signing.signed_fields(secret.encode(), node_id, "POST", path, api.clock.wall(), body)
    sent = {"Authorization": f"RAE-HMAC {made.header()}", **headers}
    return api.client.post(path, data=body, content_type="application/json", headers=sent)


def test_before_anybody_shows_who_he_is_little_is_read(api: Api) -> None:
    raw = b'{"node_id": "n1", "x": [' + b"[]," * 100_000 + b"[]]}"
    refused(apply(api, "n1", "wrong", raw), "body_too_large")
    answer = api.client.post("/nodes/register", data=raw, content_type="application/json")
    refused(answer, "unauthorized")


def test_a_registration_is_parsed_only_after_its_secret_has_been_checked(api: Api) -> None:
    api.enrol("n1")
    api.enrol("b1", kind="bearer")
    for body in (b"{", b"[]", b'{"node_id": "n2"}'):
        refused(apply(api, "n1", "wrong", body), "not_enrolled")
        refused(apply(api, "n1", "", body, Authorization="Bearer wrong"), "not_enrolled")
    for headers in ({}, {"Authorization": f"Bearer {api.secrets['b1']}"}):
        refused(apply(api, "n1", api.secrets["n1"], b"{", **headers), "invalid_json")
        refused(apply(api, "n1", api.secrets["n1"], b'{"node_id": "n2"}', **headers), "wrong_node")


def test_a_bearer_secret_registers_its_own_node_until_it_is_revoked(api: Api) -> None:
    old = api.enrol("b1", kind="bearer")

    def register(secret: str) -> Any:
        return apply(api, "b1", "", b'{"node_id": "b1"}', Authorization=f"Bearer {secret}")

    assert register(old).status_code == 200
    assert api.rae("POST", "/nodes/b1/revoke", {}, who="root").status_code == 200
    refused(register(old), "not_enrolled")
    fresh = api.enrol("b1", kind="bearer")
    refused(register(old), "not_enrolled")
    assert register(fresh).status_code == 200
    api.enrol("b1", kind="hmac")
    refused(register(fresh), "not_enrolled")


def test_a_registration_does_not_show_which_nodes_there_are(api: Api) -> None:
    for node_id in ("here", "gone"):
        api.enrol(node_id)
    api.enrol("bearer", kind="bearer")
    assert api.rae("POST", "/nodes/gone/revoke", {}, who="root").status_code == 200
    for scheme in ({}, {"Authorization": "Bearer wrong"}):
        answers = []
        for node_id in ("here", "gone", "ghost", "bearer"):
            body = json.dumps({"node_id": node_id, "capabilities": {}}).encode()
            answer = apply(api, node_id, "wrong", body, **scheme)
            message = refused(answer, "not_enrolled")["message"]
            assert "raectl nodes enrol" in message
            assert "Give the node its enrolment's secret" in message
            answers.append((answer.data, sorted(answer.headers.items())))
        assert answers == [answers[0]] * 4
    refused(apply(api, "gone", api.secrets["gone"], b'{"node_id": "gone"}'), "not_enrolled")


def test_a_revoke_that_comes_after_the_secret_was_checked_still_counts(
    api: Api, mesh: Mesh
) -> None:
    api.enrol("n1")
    assert api.rae("POST", "/nodes/n1/revoke", {}, who="root").status_code == 200
    with pytest.raises(RaeError) as refusal:
        mesh.write(
            lambda tx: ledger_nodes.register(
                tx, "n1", token_sha256="0" * 64, expires=tx.now + 60, machine=None, instance=None,
                info="{}",
            )
        )  # fmt: skip
    assert refusal.value.rc == "node_revoked"


def test_control_s_own_log_says_why_a_registration_was_refused(
    api: Api, caplog: pytest.LogCaptureFixture
) -> None:
    api.enrol("gone")
    assert api.rae("POST", "/nodes/gone/revoke", {}, who="root").status_code == 200
    apply(api, "gone", "wrong", b"{}")
    apply(api, "ghost", "wrong", b"{}")
    causes = [record.facts[2]["cause"] for record in caplog.records if hasattr(record, "facts")
              and record.message == "request_refused"]  # fmt: skip
    assert "node gone was revoked" in causes[-2]
    assert "there is no such node" in causes[-1]


def test_a_node_registers_only_so_often(api: Api, mesh: Mesh, clock: ManualClock) -> None:
    api.join("n1")
    burst = int(mesh.config.register_limit_burst)
    answers = [api.register("n1", instance=f"i{number}") for number in range(burst)]
    assert [answer.status_code for answer in answers] == [200] * (burst - 1) + [429]
    refused(answers[-1], "rate_limited")
    clock.advance(1 / mesh.config.register_limit_per_s)
    assert api.register("n1").status_code == 200


def test_a_second_agent_supersedes_on_the_same_machine_and_is_refused_from_another(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    api.join("n1")
    first = api.tokens["n1"]
    refused(api.register("n1", machine="elsewhere", instance="i9"), "node_id_in_use")
    assert api.register("n1", instance="i2").status_code == 200
    second, api.tokens["n1"] = api.tokens["n1"], first
    refused(api.node("n1", "POST", "/nodes/heartbeat", {"node_id": "n1"}), "superseded")
    api.tokens["n1"] = second
    assert api.node("n1", "POST", "/nodes/heartbeat", {"node_id": "n1"}).status_code == 200
