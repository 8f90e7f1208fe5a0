"""A heartbeat names what its node can hold, and a long one counts for as many as it costs."""

from __future__ import annotations

from typing import Any

import pytest

from rae_control.config import ControlConfig
from rae_control.core.limits import Limit
from tests.integration.control.harness import ECHO, Api, refused

BURST = 200.0


@pytest.fixture
def config() -> ControlConfig:
    """A node has its burst, and hardly more."""
    return ControlConfig(rate_limit_per_s=1 / 60, rate_limit_burst=BURST)


def false_leases(count: int) -> list[dict[str, Any]]:
    return [
        {"task_id": f"task-{number}", "attempt": 1, "lease_id": f"no-such-lease-{number}"}
        for number in range(count)
    ]


def beat(api: Api, leases: list[dict[str, Any]]) -> Any:
    return api.node("n1", "POST", "/nodes/heartbeat", {"node_id": "n1", "leases": leases})


def test_a_heartbeat_names_no_more_leases_than_its_node_can_hold(api: Api) -> None:
    api.join("n1")
    api.submit(ECHO)
    ref = api.take("n1")
    answer = beat(api, [ref, *false_leases(65)])
    assert answer.status_code == 200
    stop = {command["lease_id"] for command in answer.json["commands"]}
    assert stop == {lease["lease_id"] for lease in false_leases(65)}
    answer = beat(api, [ref, *false_leases(66)])
    refused(answer, "invalid_body")
    assert "67 are named; a node with these slots has 66 at most" in answer.json["message"]


def test_long_heartbeats_use_up_what_a_node_may_ask_for(api: Api) -> None:
    api.join("n1")
    codes = [beat(api, false_leases(1000)).status_code for _ in range(6)]
    assert 429 in codes
    assert codes.count(400) <= 3
    assert int(beat(api, false_leases(1000)).headers["Retry-After"]) > 60


def test_short_heartbeats_count_once(api: Api) -> None:
    api.join("n1")
    codes = [beat(api, false_leases(2)).status_code for _ in range(int(BURST) + 1)]
    assert (codes.count(200), codes.count(429)) == (BURST, 1)


def test_a_large_body_of_a_node_is_refused_unread(api: Api) -> None:
    api.join("n1")
    for path in ("/nodes/heartbeat", "/tasks/ack", "/tasks/progress", "/tasks/yield"):
        answer = api.node("n1", "POST", path, {"note": "x" * 600_000})
        refused(answer, "body_too_large")


def test_whatever_costs_more_than_a_full_bucket_passes_when_it_is_full() -> None:
    bucket = Limit(2.0, 10.0).bucket(0.0)
    assert bucket.take(0.0, 1000) == 0
    assert bucket.take(0.0) == 0.5
    assert bucket.take(4.0, 1000) == 1.0
    assert bucket.take(5.0, 1000) == 0
