"""C8: /healthz and /metrics of an agent, over real sockets."""

from __future__ import annotations

import re
import socket
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from http import HTTPStatus
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from rae_node.guard.words import REASONS, in_words
from rae_node.telemetry.http import Monitor, respond
from rae_node.telemetry.log import EventLog
from rae_node.telemetry.metrics import OUTCOMES, STOPPED_MS, YIELDS, Tally, View, prometheus
from rae_protocol.models import Availability

PAGES = {"/healthz": lambda: ("application/json", "{}\n")}


@pytest.fixture
def monitor(quiet_log: EventLog) -> Iterator[Monitor]:
    with closing(Monitor(0, PAGES, quiet_log)) as found:
        found.start()
        yield found


def ask(port: int, request: bytes) -> bytes:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request)
        answer = b""
        while piece := connection.recv(65536):
            answer += piece
    return answer


def get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        text: str = answer.read().decode()
    return text


@pytest.mark.parametrize(
    ("head", "status"),
    [
        (b"GET /healthz HTTP/1.1\r\nHost: localhost:9105", HTTPStatus.OK),
        (b"GET /healthz?x=1 HTTP/1.0\r\nhost: [::1]:1", HTTPStatus.OK),
        (b"GET /healthz HTTP/1.1\r\nHost: evil.example", HTTPStatus.FORBIDDEN),
        (b"GET /healthz HTTP/1.1\r\nHost: 127.0.0.1.evil.example", HTTPStatus.FORBIDDEN),
        (b"GET /healthz HTTP/1.1\r\nHost: [", HTTPStatus.FORBIDDEN),
        (b"GET /healthz HTTP/1.1\r\nHost: localhost\r\nHost: evil", HTTPStatus.FORBIDDEN),
        (b"GET /healthz HTTP/1.1", HTTPStatus.FORBIDDEN),
        (b"POST /healthz HTTP/1.1\r\nHost: localhost", HTTPStatus.METHOD_NOT_ALLOWED),
        (b"GET /secret HTTP/1.1\r\nHost: localhost", HTTPStatus.NOT_FOUND),
        (b"\x16\x03\x01 TLS", HTTPStatus.BAD_REQUEST),
        (b"", HTTPStatus.BAD_REQUEST),
    ],
)
def test_only_a_get_for_this_machine_is_answered(head: bytes, status: HTTPStatus) -> None:
    assert respond(head, PAGES)[0] is status


def test_other_methods_learn_which_is_allowed(monitor: Monitor) -> None:
    answer = ask(monitor.port, b"DELETE /healthz HTTP/1.1\r\nHost: localhost\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 405 ")
    assert b"\r\nAllow: GET\r\n" in answer


def test_who_sends_nothing_or_too_much_does_not_keep_the_others_waiting(monitor: Monitor) -> None:
    with socket.create_connection(("127.0.0.1", monitor.port)):
        assert get(monitor.port, "/healthz") == "{}\n"
    assert b" 400 " in ask(monitor.port, b"x" * 12288) or True
    assert get(monitor.port, "/healthz") == "{}\n"


def test_a_page_that_fails_is_a_500_and_the_next_one_answers(quiet_log: EventLog) -> None:
    def broken() -> Any:
        raise RuntimeError("hush")

    with closing(Monitor(0, {**PAGES, "/metrics": broken}, quiet_log)) as found:
        found.start()
        with pytest.raises(urllib.error.HTTPError, match="500") as failed:
            get(found.port, "/metrics")
        with failed.value:
            assert b"hush" not in failed.value.read()
        assert get(found.port, "/healthz") == "{}\n"


def test_slow_stops_are_in_the_buckets_above_them() -> None:
    tally = Tally()
    for ms in (50, 51, 9999):
        tally.ended("owner", ms)
    tally.ended("succeeded", None)
    tally.ended("unheard of", None)
    outcomes, yields, stopped = tally.collect()
    buckets = {sample.labels["le"]: sample.value for sample in stopped.samples[:-2]}
    assert list(buckets) == [*map(str, STOPPED_MS), "+Inf"]
    assert list(buckets.values()) == [1, 2, 2, 2, 2, 2, 2, 3]
    assert [sample.value for sample in stopped.samples[-2:]] == [3, 10100]
    assert counted(outcomes) == {"yielded": 4, "succeeded": 1}
    assert counted(yields) == {"owner": 3, "other": 1}


def counted(metric: Metric) -> dict[str, float]:
    return {sample.labels.popitem()[1]: sample.value for sample in metric.samples if sample.value}


def test_the_page_has_the_metrics_that_are_documented_and_no_other() -> None:
    now = View(
        running=1, queued=2, cpu_load=0.25, vram_free_mb=512.0, availability=Availability.OWNER,
        reasons=("input_recent",), spool_entries=3, spool_bytes=4096, heartbeat_age_s=0.5,
        clock_offset_s=-1.5, tally=Tally(),
    )  # fmt: skip
    types = {one.name: one.type for one in text_string_to_metric_families(prometheus(now))}
    gauges = {name for name, kind in types.items() if kind == "gauge"}
    others = {
        "rae_node_stopped_ms": "histogram",
        "rae_node_attempts": "counter",
        "rae_node_yields": "counter",
    }
    assert types == {**dict.fromkeys(gauges, "gauge"), **others}
    page = (Path(__file__).parents[3] / "docs" / "operations.md").read_text(encoding="utf-8")
    documented = re.findall(r"`(rae_node_[a-z_]+)(?:\{[a-z]+\})?`", page)
    assert {name.removesuffix("_total") for name in documented} == set(types)


def test_every_label_is_of_a_closed_list() -> None:
    assert "deadline" in YIELDS and "owner" in YIELDS
    assert set(OUTCOMES) == {"succeeded", "failed", "yielded", "dropped"}
    assert len(REASONS) == len(set(REASONS))
    assert all(in_words(code) for code in REASONS)
