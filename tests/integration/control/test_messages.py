"""Refusals that no other test meets, by real requests; their words are checked, too."""

from __future__ import annotations

from pathlib import Path

import pytest

from rae_control.config import ControlConfig
from rae_protocol.errors import TABLE
from tests.integration.control.harness import ECHO, Api, refused

# A mistake of ours, and a control that is not there yet: no request makes these two.
NOT_BY_REQUEST = {"internal", "not_ready"}
BURST = 20


@pytest.fixture
def config() -> ControlConfig:
    """A node may send a few requests, then one a minute."""
    return ControlConfig(reconcile_interval_s=10, rate_limit_per_s=1 / 60, rate_limit_burst=BURST)


def test_each_rc_of_the_table_is_produced_by_a_request_of_the_tests() -> None:
    files = Path(__file__).parents[1].rglob("*.py")
    text = "".join(file.read_text(encoding="utf-8") for file in files if file.name != "__init__.py")
    assert {rc for rc in TABLE if f'"{rc}"' not in text} - NOT_BY_REQUEST == set()


@pytest.mark.parametrize(
    ("method", "path", "who", "rc"),
    [
        ("POST", "/nodes/nowhere/drain", "root", "unknown_node"),
        ("POST", "/tokens/unknown/revoke", "root", "unknown_token"),
        ("GET", "/nowhere", "alice", "not_found"),
        ("PUT", "/tasks", "alice", "method_not_allowed"),
        ("GET", "/tasks?colour=red", "alice", "invalid_query"),
        ("GET", "/tasks/t1/artifacts/out.txt", "alice", "unknown_artifact"),
        ("POST", "/tasks/t1/requeue", "alice", "not_requeueable"),
        ("GET", "/tasks", "stranger", "unauthorized"),
        ("POST", "/nodes/n1/drain", "alice", "forbidden"),
    ],
)
def test_what_is_refused_is_said_with_the_way_out(
    api: Api, method: str, path: str, who: str, rc: str
) -> None:
    api.submit({**ECHO, "task_id": "t1"})
    refused(api.rae(method, path, {} if method == "POST" else None, who=who), rc)


def test_a_finished_task_cannot_be_cancelled(api: Api) -> None:
    api.join("n1")
    api.submit({**ECHO, "task_id": "t1"})
    assert api.result("n1", api.take("n1")).status_code == 200
    answer = api.rae("POST", "/tasks/t1/cancel", {})
    refused(answer, "already_finished")
    assert "has ended: it is succeeded" in answer.json["message"]
    assert "requeue" not in answer.json["message"]  # which would be refused
    again = api.rae("POST", "/tasks/t1/requeue", {}).json["message"]
    assert "t1 is succeeded, and only failed, cancelled and expired tasks queue again" in again


def test_a_failed_task_that_may_not_queue_again_is_not_said_to_be_of_the_wrong_state(
    api: Api,
) -> None:
    api.submit({**ECHO, "task_id": "t1"}, {**ECHO, "task_id": "t2", "depends_on": ["t1"]})
    api.rae("POST", "/tasks/t1/cancel", {})
    answer = api.rae("POST", "/tasks/t2/requeue", {})
    refused(answer, "not_requeueable")
    assert "it depends on t1, which did not succeed" in answer.json["message"]
    assert "only failed" not in answer.json["message"].lower()


def test_an_input_that_the_lease_does_not_have(api: Api) -> None:
    api.join("n1")
    api.submit(ECHO)
    ref = api.take("n1")
    path = f"/tasks/{ref['task_id']}/inputs/x?attempt=1&lease_id={ref['lease_id']}"
    refused(api.node("n1", "GET", path), "unknown_lease_input")


def test_a_chunked_body(api: Api) -> None:
    headers = {"Authorization": "Bearer token-of-alice", "Transfer-Encoding": "chunked"}
    answer = api.client.post("/tasks", data=b"{}", headers=headers)
    refused(answer, "length_required")


def test_too_many_requests_of_a_node(api: Api) -> None:
    api.join("n1")
    for _ in range(BURST + 1):
        answer = api.node("n1", "POST", "/nodes/heartbeat", {"node_id": "n1"})
    refused(answer, "rate_limited")
    assert int(answer.headers["Retry-After"]) > 0
