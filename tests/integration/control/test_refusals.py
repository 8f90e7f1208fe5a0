"""Whatever comes in: a clear 4xx, and nothing half done."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import apsw
import gevent
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rae_control.ledger import nodes as ledger_nodes
from rae_control.ledger import views
from rae_control.mesh.mesh import Mesh
from rae_protocol import signing
from rae_protocol.errors import RaeError
from tests.integration.control.harness import ECHO, Api, ManualClock, multipart, refused


def post(api: Api, raw: bytes, kind: str = "application/json") -> Any:
    headers = {"Authorization": "Bearer token-of-alice", "Content-Type": kind}
    return api.client.post("/tasks", data=raw, headers=headers)


def count(mesh: Mesh) -> int:
    return int(mesh.read(lambda db: db.execute("SELECT count(*) FROM tasks").get))


@pytest.mark.parametrize(
    ("raw", "rc"),
    [
        (b"", "invalid_json"),
        (b"{", "invalid_json"),
        (b"\xff\xfe{}", "invalid_json"),
        (b'{"kind": "cli", "params": {"x": NaN}}', "invalid_json"),
        (b'{"kind": "cli", "params": {"x": -Infinity}}', "invalid_json"),
        (b'{"kind": "cli", "params": {"x": 1e999}}', "invalid_json"),
        (b'{"kind": "cli", "params": {"x": "\\ud800"}}', "invalid_json"),
        (b'{"kind": "cli", "params": {"x": 99999999999999999999}}', "invalid_json"),
        (b'{"kind": "cli", "params": {"x": ' + b"9" * 5000 + b"}}", "invalid_json"),
        (b'{"kind": "cli", "params": {"x": ' + b"[" * 100 + b"]" * 100 + b"}}", "invalid_json"),
        (b"[" * 200_000, "invalid_json"),
        (b"[]", "invalid_body"),
        (b"7", "invalid_body"),
        (b"{}", "invalid_body"),
        (b'{"kind": "cli", "surprise": 1}', "invalid_body"),
        (b'{"kind": 7}', "invalid_body"),
        (b'{"kind": "cli", "priority": "5"}', "invalid_body"),
        (b'{"kind": "cli", "priority": true}', "invalid_body"),
        (b'{"kind": "cli", "priority": -1}', "invalid_body"),
        (b'{"kind": "cli", "priority": 10}', "invalid_body"),
        (b'{"kind": "cli", "timeout_s": 0}', "invalid_body"),
        (b'{"kind": "cli", "timeout_s": 1e300}', "invalid_body"),
        (b'{"kind": "cli", "lease_ttl_s": 5}', "invalid_body"),
        (b'{"kind": "cli", "lease_ttl_s": 3601}', "invalid_body"),
        (b'{"kind": "cli", "max_attempts": 1.5}', "invalid_body"),
        (b'{"kind": "cli", "task_id": "../../etc"}', "invalid_body"),
        (b'{"kind": "cli", "task_id": "poll"}', "invalid_body"),
        (b'{"kind": "cli", "task_id": "a\\u0000"}', "invalid_body"),
        (b'{"kind": "cli", "not_before": "yesterday"}', "invalid_body"),
        (b'{"kind": "cli", "not_before": "2026-01-01T00:00:00"}', "invalid_body"),
        (b'{"kind": "cli", "not_before": "9999-12-31T23:59:59-14:00"}', "invalid_body"),
        (b'{"kind": "cli", "not_before": 253402300799}', "invalid_body"),
        (b'{"kind": "cli", "not_before": "1780000000"}', "invalid_body"),
        (b'{"kind": "cli", "artifacts": [{"name": "a\\"b"}]}', "invalid_body"),
        (b'{"kind": "cli", "artifacts": [{"name": "a", "type": "x\\r\\ny: z"}]}', "invalid_body"),
        (b'{"kind": "cli", "params": {"x": [' + b"[]," * 300_000 + b"[]]}}", "invalid_json"),
        (b'{"kind": "cli", "artifacts": [{"name": "../x"}]}', "invalid_body"),
        (b'{"kind": "cli", "artifacts": [{"name": "/etc/x"}]}', "invalid_body"),
        (b'{"kind": "cli", "artifacts": [{"name": "a"}, {"name": "a"}]}', "invalid_body"),
        (b'{"kind": "cli", "artifacts": [{"name": "a"}, {"name": "a/b"}]}', "invalid_body"),
        (b'{"kind": "cli", "inputs": {"../x": {"inline": ""}}}', "invalid_body"),
        (b'{"kind": "cli", "inputs": {"x": {"inline": "", "sha256": ""}}}', "invalid_body"),
        (b'{"kind": "cli", "inputs": {"x": {"url": "file:///etc/passwd"}}}', "invalid_body"),
        (b'{"kind": "cli", "requirements": {"vram_mb": -1}}', "invalid_body"),
        (b'{"kind": "cli", "requirements": {"moon": true}}', "invalid_body"),
        (b'{"tasks": []}', "invalid_body"),
        (b'{"kind": "cli", "depends_on": ["nobody"]}', "unknown_dependency"),
        (b'{"kind": "cli", "inputs": {"x": {"sha256": "' + b"0" * 64 + b'"}}}', "unknown_input"),
        (b'{"kind": "cli", "task_id": "a", "depends_on": ["a"]}', "dependency_cycle"),
    ],
)  # fmt: skip
def test_a_bad_submit_is_refused_and_leaves_nothing(
    api: Api, mesh: Mesh, raw: bytes, rc: str
) -> None:
    refused(post(api, raw), rc)
    assert count(mesh) == 0


def test_one_bad_task_refuses_the_whole_call(api: Api, mesh: Mesh) -> None:
    good = {**ECHO, "task_id": "good"}
    answer = api.rae("POST", "/tasks", {"tasks": [good, {**ECHO, "depends_on": ["nobody"]}]})
    refused(answer, "unknown_dependency")
    assert count(mesh) == 0
    assert api.rae("POST", "/tasks", {"tasks": [ECHO] * 1001}).json["rc"] == "invalid_body"


def test_one_call_has_room_for_so_many_dependencies(api: Api) -> None:
    ids = [f"t{number}" for number in range(300)]
    dense = [
        {**ECHO, "task_id": name, "depends_on": ids[max(0, at - 250) : at]}
        for at, name in enumerate(ids)
    ]
    answer = refused(api.rae("POST", "/tasks", {"tasks": dense}), "invalid_body")
    assert "20000 are allowed in one call" in answer["message"]
    assert len(api.submit(*dense[:100])) == 100


def test_a_circle_over_many_tasks_is_named(api: Api) -> None:
    ring = [{**ECHO, "task_id": f"r{i}", "depends_on": [f"r{(i + 1) % 50}"]} for i in range(50)]
    assert (
        "r0 -> r1"
        in refused(api.rae("POST", "/tasks", {"tasks": ring}), "dependency_cycle")["message"]
    )


def test_a_body_of_20_mib_is_too_large(api: Api) -> None:
    refused(post(api, b'{"kind": "' + b"x" * (20 * 1024 * 1024) + b'"}'), "body_too_large")


def test_other_media_types_are_refused(api: Api) -> None:
    refused(post(api, b"<task/>", "text/xml"), "unsupported_media")


def test_ids_of_others_are_taken_and_their_tasks_are_not_seen(api: Api) -> None:
    api.submit({**ECHO, "task_id": "hers"})
    refused(api.rae("POST", "/tasks", {**ECHO, "task_id": "hers"}, who="bob"), "task_id_taken")
    refused(api.rae("POST", "/tasks", {**ECHO, "task_id": "hers", "priority": 1}), "task_conflict")
    for path in ("", "/log", "/result", "/events", "/artifacts/x"):
        refused(api.rae("GET", f"/tasks/hers{path}", who="bob"), "unknown_task")
    refused(api.rae("POST", "/tasks/hers/cancel", who="bob"), "unknown_task")
    assert api.rae("GET", "/tasks/hers", who="eve").status_code == 200
    refused(api.rae("POST", "/tasks/hers/cancel", who="eve"), "forbidden")


def test_blobs_are_checked_and_scoped_to_their_submitter(api: Api) -> None:
    refused(api.rae("PUT", f"/blobs/{'0' * 64}", b"something else"), "blob_mismatch")
    refused(api.rae("PUT", "/blobs/../../etc/passwd", b"x"), "not_found")
    refused(api.rae("PUT", "/blobs/ABC", b"x"), "blob_mismatch")
    digest = api.blob(b"mine")
    assert api.rae("GET", f"/blobs/{digest}").data == b"mine"
    assert api.rae("HEAD", f"/blobs/{digest}").status_code == 200
    refused(api.rae("GET", f"/blobs/{digest}", who="bob"), "unknown_blob")
    body = {**ECHO, "inputs": {"x": {"sha256": digest}}}
    refused(api.rae("POST", "/tasks", body, who="bob"), "unknown_input")
    big = b"\0" * (16 * 1024 * 1024 + 1)
    refused(api.rae("PUT", f"/blobs/{hashlib.sha256(big).hexdigest()}", big), "body_too_large")


@pytest.mark.parametrize(
    ("method", "path", "rc"),
    [
        ("GET", "/nothing", "not_found"),
        ("GET", "/tasks/a/b/c", "not_found"),
        ("DELETE", "/tasks", "method_not_allowed"),
        ("GET", "/tasks?limit=-1", "invalid_query"),
        ("GET", "/tasks?limit=0", "invalid_query"),
        ("GET", "/tasks/none?state=asleep", "invalid_query"),
        ("GET", "/tasks?limit=1&limit=2", "invalid_query"),
        ("GET", "/tasks?surprise=1", "invalid_query"),
        ("GET", "/tasks?state=sleeping", "invalid_query"),
        ("GET", "/tasks?cursor=99999999999999999999", "invalid_query"),
        ("GET", "/tasks?label=x", "invalid_query"),
        ("GET", "/tasks/none?wait=1e9", "invalid_query"),
        ("GET", "/events?after=x", "invalid_query"),
        ("GET", "/events?wait=61", "invalid_query"),
        ("GET", "/tasks/none", "unknown_task"),
        ("POST", "/tasks/none/requeue", "unknown_task"),
        ("GET", "/nodes", "forbidden"),
        ("POST", "/tokens", "forbidden"),
        ("POST", "/nodes/enrol", "forbidden"),
    ],
)
def test_wrong_paths_and_queries(api: Api, method: str, path: str, rc: str) -> None:
    refused(api.rae(method, path), rc)


def test_a_label_filter_is_a_value_not_sql(api: Api) -> None:
    api.submit({**ECHO, "labels": {"run": "x'--"}}, ECHO)
    found = api.rae("GET", "/tasks?label=run=x'--").json["tasks"]
    assert len(found) == 1
    for odd in ("%00=x", "%22%27%29=1", "=", "a=b=c", "$=1"):
        assert api.rae("GET", f"/tasks?label={odd}").status_code == 200


def test_pages_follow_each_other_without_gap(api: Api) -> None:
    ids = [t["task_id"] for t in api.submit(*[ECHO] * 25)]
    seen: list[str] = []
    query = "limit=10"
    while True:
        page = api.rae("GET", f"/tasks?{query}").json
        seen += [t["task_id"] for t in page["tasks"]]
        if "next" not in page:
            break
        query = f"limit=10&cursor={page['next']}"
    assert seen == ids[::-1]


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


def test_without_a_valid_token_control_says_nothing(api: Api) -> None:
    for headers in ({}, {"Authorization": "Bearer wrong"}, {"Authorization": "Basic eDp5"}):
        for path in ("/tasks", "/nodes", "/events", "/tasks/x", "/tokens"):
            assert api.client.get(path, headers=headers).json["rc"] == "unauthorized"
    assert api.client.get("/healthz").status_code == 200
    assert api.client.get("/readyz").status_code == 200


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


def test_control_says_whether_it_is_ready_without_a_write(api: Api, mesh: Mesh) -> None:
    wal = mesh.data / "ledger.db-wal"
    before = wal.read_bytes()
    for _ in range(5):
        assert api.client.get("/readyz").status_code == 200
    assert wal.read_bytes() == before


def test_control_is_ready_again_once_the_ledger_takes_a_commit(api: Api, mesh: Mesh) -> None:
    other = apsw.Connection(str(mesh.data / "ledger.db"))
    other.execute("BEGIN IMMEDIATE")
    refused(api.rae("POST", "/tasks", ECHO), "ledger_unavailable")
    refused(api.client.get("/readyz"), "ledger_unavailable")
    other.execute("ROLLBACK")
    other.close()
    mesh.reaper.tick()
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


def test_unknown_leases_and_odd_results(api: Api) -> None:
    api.join("n1")
    api.submit({**ECHO, "artifacts": [{"name": "ok.txt", "max_mb": 0.001}]})
    ref = api.take("n1")
    strange = {**ref, "lease_id": "ffffffffffffffff"}
    for path, extra in (
        ("ack", {}), ("progress", {"pct": 5}), ("log", {"offset": 0, "data": ""}),
        ("result", {"status": "failed"}), ("yield", {"reason": "owner"}),
    ):  # fmt: skip
        refused(api.node("n1", "POST", f"/tasks/{path}", {**strange, **extra}), "stale_lease")
        wrong_attempt = {**ref, "attempt": 7, **extra}
        refused(api.node("n1", "POST", f"/tasks/{path}", wrong_attempt), "stale_lease")
    refused(api.node("n1", "POST", "/tasks/progress", {**ref, "pct": 101}), "invalid_body")
    refused(
        api.node("n1", "POST", "/tasks/log", {**ref, "offset": 0, "data": "%%"}), "invalid_body"
    )
    refused(api.node("n1", "POST", "/tasks/result", {**ref, "status": "great"}), "invalid_body")
    described = {**ref, "status": "succeeded", "artifacts": [{"name": "ok.txt"}]}
    refused(api.node("n1", "POST", "/tasks/result", described), "artifact_mismatch")
    for name, content, rc in (
        ("../../etc/cron.d/x", b"x", "invalid_body"),
        ("undeclared.txt", b"x", "artifact_mismatch"),
        ("ok.txt", b"x" * 5000, "artifact_mismatch"),
    ):
        body = multipart({**ref, "status": "succeeded"}, name, content)
        kind = "multipart/form-data; boundary=xyz"
        refused(api.node("n1", "POST", "/tasks/result", body, content_type=kind), rc)
    wrong = {**ref, "status": "succeeded", "artifacts": [{"name": "ok.txt", "sha256": "0" * 64}]}
    body = multipart(wrong, "ok.txt", b"x")
    kind = "multipart/form-data; boundary=xyz"
    refused(api.node("n1", "POST", "/tasks/result", body, content_type=kind), "artifact_mismatch")
    for junk in (b"", b"junk", b"--xyz\r\n", b"--xyz--\r\n"):
        answer = api.node("n1", "POST", "/tasks/result", junk, content_type=kind)
        assert answer.status_code in {400, 415}, answer.json
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


def test_limits_on_lanes_queue_and_requests(api: Api, mesh: Mesh) -> None:
    object.__setattr__(
        mesh.config, "__dict__", {**mesh.config.__dict__, "max_lanes": 3, "max_queued": 6}
    )
    tags = [{**ECHO, "requirements": {"tags": [f"t{i}"]}} for i in range(3)]
    api.submit(*tags)
    answer = api.rae("POST", "/tasks", {**ECHO, "requirements": {"tags": ["t9"]}})
    refused(answer, "too_many_lanes")
    assert int(answer.headers["Retry-After"]) > 0
    refused(api.rae("POST", "/tasks", {"tasks": tags * 2}), "queue_full")


def with_limits(mesh: Mesh, **limits: int) -> None:
    object.__setattr__(mesh.config, "__dict__", {**mesh.config.__dict__, **limits})


def test_a_repeated_submit_is_answered_however_full_the_queue_is(api: Api, mesh: Mesh) -> None:
    with_limits(mesh, max_queued=2, max_lanes=1)
    tasks = [{**ECHO, "task_id": "a"}, {**ECHO, "task_id": "b"}]
    api.submit(*tasks)
    again = api.rae("POST", "/tasks", {"tasks": tasks})
    assert again.status_code == 201
    assert [one["created"] for one in again.json["tasks"]] == [False, False]
    refused(api.rae("POST", "/tasks", {**ECHO, "task_id": "c"}), "queue_full")
    refused(
        api.rae("POST", "/tasks", {"tasks": [tasks[0], {**ECHO, "task_id": "c"}]}), "queue_full"
    )


def test_submits_at_the_same_time_do_not_overshoot_the_queue(api: Api, mesh: Mesh) -> None:
    with_limits(mesh, max_queued=5)
    answers = [
        gevent.spawn(api.rae, "POST", "/tasks", {**ECHO, "task_id": f"t{number}"})
        for number in range(20)
    ]
    gevent.joinall(answers)
    codes = [one.value.status_code for one in answers]
    assert (codes.count(201), len(codes)) == (5, 20)


def test_tasks_that_wait_for_their_time_open_lanes_too(api: Api, mesh: Mesh) -> None:
    with_limits(mesh, max_lanes=3)
    later = [
        {**ECHO, "not_before": "2190-01-01T00:00:00Z", "requirements": {"tags": [f"t{number}"]}}
        for number in range(4)
    ]
    api.submit(*later[:3])
    refused(api.rae("POST", "/tasks", later[3]), "too_many_lanes")
    api.submit(later[0])


def lane(number: int, **more: Any) -> dict[str, Any]:
    return {**ECHO, "requirements": {"tags": [f"t{number}"]}, **more}


@pytest.mark.parametrize("when", ["2190-01-01T00:00:00Z", None])
def test_no_submitter_opens_so_many_lanes_that_another_one_has_none(
    api: Api, mesh: Mesh, when: str | None
) -> None:
    with_limits(mesh, max_lanes=400, max_lanes_per_submitter=300)
    many = [lane(number, not_before=when) for number in range(500)]
    refused(api.rae("POST", "/tasks", {"tasks": many}), "too_many_lanes")
    api.submit(*many[:300])
    refused(api.rae("POST", "/tasks", many[300]), "too_many_lanes")
    api.submit(many[0])
    api.submit(*many[:100], who="bob")
    # Everybody's are used up; whoever has few still gets some.
    refused(api.rae("POST", "/tasks", many[101], who="bob"), "too_many_lanes")
    api.submit(*many[:4], who="root")
    refused(api.rae("POST", "/tasks", many[4], who="root"), "too_many_lanes")
    assert mesh.lanes_of == {"alice": 300, "bob": 100, "root": 4}


def test_a_requeue_is_held_to_the_limits_of_a_submit(api: Api, mesh: Mesh) -> None:
    with_limits(mesh, max_lanes_per_submitter=2, max_queued=3)
    for number in range(4):
        api.submit(lane(number, task_id=f"t{number}"))
        api.rae("POST", f"/tasks/t{number}/cancel", {})
    codes = [api.rae("POST", f"/tasks/t{n}/requeue", {}).status_code for n in range(4)]
    assert codes == [200, 200, 429, 429]
    api.submit(lane(0))
    refused(api.rae("POST", "/tasks", lane(0)), "queue_full")
    assert api.task("t3")["state"] == "cancelled"


def test_a_submitters_blobs_have_a_limit_and_make_room_when_they_go(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    with_limits(mesh, max_blob_bytes=20_000)
    kept = api.blob(b"x" * 10_000)
    for number in range(2):
        api.blob(b"%d" % number)  # takes a block of the disk
    new = b"y" * 4096
    answer = api.rae("PUT", f"/blobs/{hashlib.sha256(new).hexdigest()}", new)
    refused(answer, "blobs_full")
    assert int(answer.headers["Retry-After"]) > 0
    api.blob(b"x" * 10_000)
    api.blob(new, who="bob")
    api.submit({**ECHO, "inputs": {"f": {"sha256": kept}}})
    clock.advance(2 * 86400)
    mesh.retention.sweep()
    api.blob(new)


def test_uploads_at_the_same_time_do_not_overshoot_a_submitters_blobs(api: Api, mesh: Mesh) -> None:
    with_limits(mesh, max_blob_bytes=5 * 4096)
    texts = [b"%d" % number for number in range(20)]
    answers = [
        gevent.spawn(api.rae, "PUT", f"/blobs/{hashlib.sha256(text).hexdigest()}", text)
        for text in texts
    ]
    gevent.joinall(answers)
    codes = [one.value.status_code for one in answers]
    assert (codes.count(201), codes.count(429)) == (5, 15)
    # Neither are bytes of refused ones left.
    assert len([path for path in (mesh.data / "blobs").rglob("*") if path.is_file()]) == 5


def test_a_nearly_full_disk_refuses_submits_and_nothing_else(api: Api, mesh: Mesh) -> None:
    api.join("n1")
    api.submit(ECHO)
    ref = api.take("n1")
    object.__setattr__(mesh.config, "__dict__", {**mesh.config.__dict__, "low_water_bytes": 2**62})
    refused(api.rae("POST", "/tasks", ECHO), "disk_low")
    assert api.result("n1", ref).status_code == 200


def test_tokens_are_listed_without_their_text_and_end_at_once(api: Api) -> None:
    made = api.rae("POST", "/tokens", {"name": "ci", "role": "submit"}, who="root").json
    headers = {"Authorization": f"Bearer {made['token']}"}
    assert api.client.get("/tasks", headers=headers).status_code == 200
    refused(api.rae("POST", "/tokens", {"name": "ci", "role": "read"}, who="root"), "token_exists")
    assert "token" not in api.rae("GET", "/tokens", who="root").json["tokens"][-1]
    assert api.rae("POST", "/tokens/ci/revoke", who="root").status_code == 200
    refused(api.client.get("/tasks", headers=headers), "unauthorized")
    refused(api.rae("POST", "/tokens/nobody/revoke", who="root"), "unknown_token")


json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=20),
    lambda inner: (
        st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=10), inner, max_size=4)
    ),
    max_leaves=12,
)
FIELDS = sorted(__import__("rae_protocol.tasks").tasks.TaskSpec.model_fields)


@settings(
    max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(body=st.dictionaries(st.sampled_from([*FIELDS, "tasks", "x"]), json_values, max_size=6))
def test_no_body_makes_control_stumble(api: Api, body: dict[str, Any]) -> None:
    answer = post(api, json.dumps({"kind": "cli", **body}).encode())
    assert answer.status_code < 500, answer.json
    assert "/api/v1" not in str(answer.json)


def test_everything_is_there_under_api_v1_too(api: Api, mesh: Mesh) -> None:
    answer = api.client.post(
        "/api/v1/tasks", json=ECHO, headers={"Authorization": "Bearer token-of-alice"}
    )
    assert answer.status_code == 201
    assert mesh.read(lambda db: len(views.backlog(db))) == 1
