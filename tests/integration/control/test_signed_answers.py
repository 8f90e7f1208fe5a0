"""Control signs what it answers to a signed call, refusals too, and nothing for anybody else."""

from __future__ import annotations

import base64
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from werkzeug.test import TestResponse

from rae_control.config import ControlConfig
from rae_control.mesh.mesh import Mesh
from rae_control.server.app import create_app
from rae_protocol import signing
from tests.integration.control.harness import ECHO, Api, ManualClock, Server, build


class Caller:
    """Node n1, which keeps what it sent to check the answers by."""

    def __init__(self, api: Api) -> None:
        self.api = api
        self.secret, self.token = api.secrets["n1"], api.tokens.get("n1", "")

    def call(
        self, path: str, body: Any = None, *, ahead: float = 0, twice: bool = False,
        arrives_as: str = "application/json",
    ) -> Any:  # fmt: skip
        """The answer, and whether it is signed to this call."""
        raw = b"" if body is None else json.dumps(body).encode()
        method = "GET" if body is None else "POST"
        registers = path == "/nodes/register"
        key = self.secret.encode()
        if not registers:
            key = signing.session_key(self.secret, self.token)
        fields = signing.signed_fields(
            key, "n1", method, path, self.api.clock.wall() + ahead, raw
        )  # fmt: skip
        headers = {
            "Authorization": f"Bearer {self.token}", "RAE-Signature": fields.header(),
            "Content-Type": arrives_as,
        }  # fmt: skip
        if registers:
            headers["Authorization"] = f"RAE-HMAC {fields.header()}"
            del headers["RAE-Signature"]
        for _ in range(2 if twice else 1):
            answer = self.api.client.open(path, method=method, data=raw, headers=headers)
        return answer, self._signed(answer, key, fields.nonce)

    def _signed(self, answer: TestResponse, key: bytes, nonce: str) -> bool:
        given = answer.headers.get(signing.ANSWER_HEADER)
        if given is None:
            return False
        fields, digest = signing.parse_answer(given), hashlib.sha256(answer.data).hexdigest()
        assert abs(float(fields.ts) - self.api.clock.wall()) < 0.01
        answered = signing.Answered(nonce, "application/json", answer.status_code, digest)
        return signing.answer_matches(fields, key, answered)

    def refused(self, rc: str, path: str, body: Any = None, **options: Any) -> bool:
        """Whether the refusal is signed."""
        answer, signed = self.call(path, body, **options)
        assert answer.json["rc"] == rc
        return bool(signed)


REGISTER = {"node_id": "n1", "ack": True, "machine": "m1", "instance": "i2", "slots": ["cpu0"]}
BEAT = {"node_id": "n1"}


@pytest.fixture
def node(api: Api) -> Caller:
    api.join("n1")
    return Caller(api)


def test_every_answer_to_a_nodes_call_is_signed(node: Caller) -> None:
    node.api.submit(ECHO)
    ref = node.api.claim("n1")
    log = {**ref, "offset": 0, "data": "eA=="}
    for path, sent in (
        ("/nodes/heartbeat", BEAT), ("/tasks/poll?wait=0&slots=", None), ("/tasks/ack", ref),
        ("/tasks/progress", {**ref, "pct": 1}), ("/tasks/log", log),
        ("/tasks/result", {**ref, "status": "succeeded"}), ("/nodes/register", REGISTER),
    ):  # fmt: skip
        answer, signed = node.call(path, sent)
        assert (answer.status_code, signed) == (200, True), path
    node.token = node.call("/nodes/register", {**REGISTER, "instance": "i3"})[0].json["node_token"]
    assert node.call("/nodes/goodbye", BEAT)[1]


def test_a_large_answer_and_a_streamed_one_are_signed_by_their_content(node: Caller) -> None:
    content = b"content" * 50_000
    body = {**ECHO, "inputs": {"f": {"sha256": node.api.blob(content)}}}
    node.api.submit({**body, "params": {"command": "true", "args": ["x" * 200_000]}})
    answer, signed = node.call("/tasks/poll?wait=5&slots=cpu0")
    assert signed and len(answer.data) > 200_000
    ref = json.loads(base64.b64decode(answer.json["task"]["payload"]))
    node.call("/tasks/ack", {name: ref[name] for name in ("task_id", "attempt", "lease_id")})
    path = f"/tasks/{ref['task_id']}/inputs/f?attempt=1&lease_id={ref['lease_id']}"
    answer, signed = node.call(path)
    assert signed and answer.data == content


def test_refusals_are_signed_too(node: Caller) -> None:
    ref = {"task_id": "t1", "attempt": 1, "lease_id": "lease-0001"}
    assert node.refused("stale_lease", "/tasks/ack", ref)
    assert node.refused("invalid_body", "/nodes/heartbeat", {"wrong": 1})
    assert node.refused("wrong_node", "/nodes/heartbeat", {"node_id": "n2"})
    assert node.refused("skew", "/nodes/heartbeat", BEAT, ahead=50)
    assert node.refused("skew", "/nodes/register", REGISTER, ahead=-90)
    other = {**REGISTER, "machine": "m2"}
    assert node.refused("node_id_in_use", "/nodes/register", other)


def test_a_call_that_somebody_gave_another_type_is_refused_without_a_signature_that_fits(
    node: Caller,
) -> None:
    result = {"task_id": "t1", "status": "succeeded"}
    for kind in ("text/plain", "multipart/form-data; boundary=x"):
        answer, signed = node.call("/tasks/result", result, arrives_as=kind)
        assert (answer.status_code in {400, 415}, signed) == (True, False)


def test_the_end_of_a_session_is_signed_with_the_key_that_the_node_has(
    node: Caller, clock: ManualClock
) -> None:
    node.call("/nodes/register", REGISTER)
    assert node.refused("superseded", "/nodes/heartbeat", BEAT)
    node.call("/nodes/register", {**REGISTER, "instance": "i3"})
    assert node.refused("register_again", "/nodes/heartbeat", BEAT)
    node.api.rae("POST", "/nodes/n1/revoke", {}, who="root")
    assert node.refused("register_again", "/nodes/heartbeat", BEAT)
    assert node.refused("not_enrolled", "/nodes/register", REGISTER)
    node.api.enrol("n1")
    assert node.refused("not_enrolled", "/nodes/register", REGISTER)


def test_a_session_that_is_too_old_ends_with_a_signature(node: Caller, clock: ManualClock) -> None:
    clock.advance(13 * 3600)
    assert node.refused("register_again", "/nodes/heartbeat", BEAT)


def test_a_ledger_that_never_had_the_node_says_so_with_a_signature(
    node: Caller, tmp_path: Path, redis_server: Server, clock: ManualClock, config: ControlConfig,
    mesh: Mesh,
) -> None:  # fmt: skip
    older = tmp_path / "older"
    older.mkdir()
    (older / "root.key").write_bytes((mesh.data / "root.key").read_bytes())
    before = build(older, redis_server, clock, config)
    node.api.client = create_app(before).test_client()
    assert node.refused("register_again", "/nodes/heartbeat", BEAT)
    assert node.refused("not_enrolled", "/nodes/register", REGISTER)
    before.close()


def test_a_restart_says_so_with_a_signature(
    node: Caller, redis_server: Server, clock: ManualClock, config: ControlConfig, mesh: Mesh
) -> None:
    mesh.close()
    again = build(mesh.data, redis_server, clock, config)
    clock.offset -= 6
    node.api.client = create_app(again).test_client()
    assert node.refused("retry_signed", "/nodes/heartbeat", BEAT)
    again.close()


def test_control_signs_nothing_for_who_cannot_sign(node: Caller) -> None:
    assert not node.refused("replayed_nonce", "/nodes/heartbeat", BEAT, twice=True)
    real, node.secret = node.secret, "guessed"
    assert not node.refused("bad_signature", "/nodes/heartbeat", BEAT)
    assert not node.refused("not_enrolled", "/nodes/register", REGISTER)
    node.token = "unknown"
    assert not node.refused("register_again", "/nodes/heartbeat", BEAT)
    node.secret = real
    node.api.enrol("tiny", kind="bearer")
    headers = {"Authorization": f"Bearer {node.api.secrets['tiny']}"}
    registered = node.api.client.post("/nodes/register", json={"node_id": "tiny"}, headers=headers)
    assert registered.status_code == 200
    assert signing.ANSWER_HEADER not in registered.headers
    assert signing.ANSWER_HEADER not in node.api.rae("GET", "/tasks").headers


def test_a_token_read_off_the_wire_replaces_no_session(node: Caller, mesh: Mesh) -> None:
    # Twice a replaced session means two machines with one name, and cordons the node.
    old = node.token
    for instance in ("i2", "i3", "i4"):
        old = node.token
        node.token = node.call("/nodes/register", {**REGISTER, "instance": instance})[0].json[
            "node_token"
        ]
        for headers in (
            {},
            {"RAE-Signature": 'keyid="n1", ts="1", nonce="%s", sig="0"' % ("A" * 22)},
        ):
            said = node.api.client.post(
                "/nodes/heartbeat", json=BEAT, headers={"Authorization": f"Bearer {old}", **headers}
            )
            assert said.json["rc"] == "bad_signature"
    entry = mesh.nodes.get("n1")
    assert entry is not None and entry.cordoned is None
