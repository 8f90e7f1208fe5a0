"""C8: /healthz and /metrics of an agent, over real sockets."""

from __future__ import annotations

import json
import re
import socket
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import closing
from http import HTTPStatus
from typing import Any

import pytest

from rae_node.guard.policy import Reading
from rae_node.guard.words import REASONS, in_words
from rae_node.owner.monitor_view import view
from rae_node.telemetry.http import Monitor, respond
from rae_node.telemetry.log import EventLog
from rae_node.telemetry.metrics import OUTCOMES, STOPPED_MS, YIELDS, Tally, healthz, prometheus
from tests.unit.node.fakes import UNREACHABLE, Rig
from tests.until import until

PAGES = {"/healthz": lambda: ("application/json", "{}\n")}
SAMPLE = re.compile(r'(rae_node_[a-z_]+)(\{[a-z]+="[A-Za-z0-9_.+]+"\})? -?[0-9.e+-]+')


@pytest.fixture
def open_port() -> int:
    """A port without a listener."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port: int = held.getsockname()[1]
    return port


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


def metrics(rig: Rig) -> dict[str, float]:
    lines = [line for line in prometheus(view(rig.agent)).splitlines() if line[0] != "#"]
    return {key: float(value) for key, _, value in (line.rpartition(" ") for line in lines)}


def test_healthz_and_metrics_answer_while_the_agent_runs(
    make_rig: Callable[..., Rig], open_port: int
) -> None:
    """Contract: C8."""
    rig = make_rig(metrics_port=open_port)
    rig.control.give(task_id="hush-hush", params={"command": "sleep", "args": ["60"]})
    until(lambda: json.loads(get(open_port, "/healthz"))["running"] == 1, "the task runs")
    health = json.loads(get(open_port, "/healthz"))
    assert list(health) == ["running", "queued", "cpu_load", "vram_free"]
    assert health["queued"] == 0
    assert health["vram_free"] is None
    text = get(open_port, "/metrics")
    assert "hush" not in text
    assert [
        line for line in text.splitlines() if line[0] != "#" and not SAMPLE.fullmatch(line)
    ] == []
    rig.agent.shut_down()
    with pytest.raises(urllib.error.URLError):
        get(open_port, "/healthz")


def test_counters_equal_what_happened(make_rig: Callable[..., Rig]) -> None:
    """Contract: C8."""
    rig = make_rig()
    rig.run(params={"command": "true"})
    rig.run(params={"command": "mkfs"})
    rig.control.give(params={"command": "sleep", "args": ["60"]})
    until(rig.running, "it runs")
    rig.owner.present = True
    rig.agent.guard.wake()
    until(lambda: metrics(rig)['rae_node_attempts_total{outcome="yielded"}'] == 1, "it is counted")
    shown = metrics(rig)
    assert shown['rae_node_attempts_total{outcome="succeeded"}'] == 1
    assert shown['rae_node_attempts_total{outcome="failed"}'] == 1
    assert shown['rae_node_yields_total{reason="owner"}'] == 1
    assert shown["rae_node_stopped_ms_count"] == shown['rae_node_stopped_ms_bucket{le="+Inf"}'] == 1
    assert shown["rae_node_stopped_ms_sum"] > 0
    assert shown['rae_node_guard_state{state="owner"}'] == 1
    assert shown['rae_node_guard_reason{reason="other"}'] == 1  # the test's own source
    assert shown["rae_node_heartbeat_age_seconds"] >= 0


def test_queued_counts_tasks_that_wait_to_run_and_results_that_wait_for_control(
    make_rig: Callable[..., Rig],
) -> None:
    """Contract: C8."""
    rig = make_rig()
    rig.control.fail["result"] = UNREACHABLE
    rig.control.give(params={"command": "true"})
    until(lambda: metrics(rig)["rae_node_spool_entries"] == 1, "the result waits")
    assert healthz(view(rig.agent))["queued"] == 1
    assert metrics(rig)["rae_node_spool_bytes"] > 0


def test_free_vram_is_that_of_the_guards_last_look(make_rig: Callable[..., Rig]) -> None:
    """Contract: C8."""
    rig = make_rig()
    rig.owner.read = lambda: Reading("owner", vram_free_mb=512.0)  # type: ignore[method-assign]
    rig.agent.guard.wake()
    until(lambda: healthz(view(rig.agent))["vram_free"] == 512.0, "the guard has looked")
    assert metrics(rig)["rae_node_vram_free_bytes"] == 512 * 1048576


def test_a_port_that_is_taken_is_a_warning_and_the_agent_works(
    make_rig: Callable[..., Rig], free_port: int
) -> None:
    assert make_rig(metrics_port=free_port).run(params={"command": "true"})[0].status == "succeeded"


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
    counts = tally.counts()
    assert counts.stopped_ms == (1, 2, 2, 2, 2, 2, 2, 3)
    assert len(counts.stopped_ms) == len(STOPPED_MS) + 1
    assert (counts.yields, counts.outcomes) == (
        {"owner": 3, "other": 1},
        {"yielded": 4, "succeeded": 1},
    )


def test_every_label_is_of_a_closed_list() -> None:
    assert "deadline" in YIELDS and "owner" in YIELDS
    assert set(OUTCOMES) == {"succeeded", "failed", "yielded", "dropped"}
    assert len(REASONS) == len(set(REASONS))
    assert all(in_words(code) for code in REASONS)
