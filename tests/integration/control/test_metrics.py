"""`/metrics` counts what happens, with labels that cannot grow."""

from __future__ import annotations

import re

from prometheus_client.parser import text_string_to_metric_families

from rae_control.mesh.mesh import Mesh
from tests.integration.control.harness import ECHO, Api, ManualClock, until


def scrape(api: Api) -> dict[str, float]:
    answer = api.rae("GET", "/metrics", who="eve")
    assert answer.headers["Content-Type"] == "text/plain; version=0.0.4; charset=utf-8"
    return {
        re.sub(r"[{}'\" ]", "", f"{s.name}{s.labels or ''}"): s.value
        for family in text_string_to_metric_families(answer.text)
        for s in family.samples
    }


def test_metrics_need_the_role_read(api: Api) -> None:
    assert api.client.get("/metrics").status_code == 401
    assert api.rae("GET", "/metrics", who="alice").status_code == 403


def test_metrics_follow_tasks_from_submit_to_result(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    api.join("n1")
    api.submit({**ECHO, "priority": 7}, ECHO, ECHO)
    ref = api.claim("n1")
    clock.advance(2)
    api.node("n1", "POST", "/tasks/ack", ref)
    clock.advance(3)
    api.result("n1", ref)
    yielded = api.take("n1")
    api.node("n1", "POST", "/tasks/yield", {**yielded, "reason": "owner"})
    api.result("n1", api.take("n1"), "failed", error={"code": "E_ODD_WORD", "message": ""})
    until(lambda: mesh.keeper.health.used_memory, "Redis has said what it holds")
    found = scrape(api)
    assert found["rae_tasksstate:succeeded"] == 1
    assert found["rae_claims_totaloutcome:won"] == 3
    assert found["rae_results_totaloutcome:succeeded"] == 1
    assert found["rae_results_totaloutcome:failed"] == 1
    assert found["rae_interruptions_totalreason:yield_owner"] == 1
    assert found["rae_queuedpriority:5"] == 1
    assert found["rae_lease_to_ack_seconds_sum"] == 2
    assert found["rae_run_seconds_sum"] == 3
    assert found["rae_submit_to_running_seconds_count"] == 2
    assert found["rae_nodesstate:online"] == 1
    assert found["rae_http_requests_totaloperation:POST/tasks,status:201"] == 1
    assert found["rae_queue_up"] == found["rae_queue_aof_ok"] == 1
    assert found["rae_ledger_commit_seconds_count"] > 5
    assert found["rae_disk_free_bytes"] > 0
    assert "E_ODD_WORD" not in " ".join(found)


def test_labels_never_hold_what_callers_chose(api: Api) -> None:
    for path in (
        "/tasks/some-task",
        "/nodes/some-node",
        "/nothing/at/all",
        "/api/v1/tasks/some-task",
    ):
        api.rae("GET", path, who="root")
    text = api.rae("GET", "/metrics", who="root").text
    assert "some-" not in text
    assert 'operation="GET /tasks/<task_id>",status="404"} 2.0' in text
    assert 'operation="unknown",status="404"} 1.0' in text
