"""Bodies, paths and results that control refuses, each with its rc."""

from __future__ import annotations

import hashlib
import json
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from rae_control.ledger import views
from rae_control.mesh.mesh import Mesh
from tests.integration.control.harness import ECHO, Api, multipart, refused


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
