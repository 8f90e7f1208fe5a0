"""C8: /healthz and /metrics of an agent, over real sockets."""

from __future__ import annotations

import json
import re
import socket
import urllib.error
import urllib.request

import pytest

from rae_node.guard.policy import Reading
from rae_node.owner.monitor_view import view
from rae_node.telemetry.metrics import healthz, prometheus
from tests.integration.node.harness import MakeRig, Rig
from tests.unit.node.harness import UNREACHABLE
from tests.until import until

SAMPLE = re.compile(r'(rae_node_[a-z_]+)(\{[a-z]+="[A-Za-z0-9_.+]+"\})? -?[0-9.e+-]+')


@pytest.fixture
def open_port() -> int:
    """A port without a listener."""
    with socket.create_server(("127.0.0.1", 0)) as held:
        port: int = held.getsockname()[1]
    return port


def get(port: int, path: str) -> str:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
        text: str = answer.read().decode()
    return text


def metrics(rig: Rig) -> dict[str, float]:
    lines = [line for line in prometheus(view(rig.agent)).splitlines() if line[0] != "#"]
    return {key: float(value) for key, _, value in (line.rpartition(" ") for line in lines)}


def test_healthz_and_metrics_answer_while_the_agent_runs(make_rig: MakeRig, open_port: int) -> None:
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


def test_counters_equal_what_happened(make_rig: MakeRig) -> None:
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
    make_rig: MakeRig,
) -> None:
    """Contract: C8."""
    rig = make_rig()
    rig.control.fail["result"] = UNREACHABLE
    rig.control.give(params={"command": "true"})
    until(lambda: metrics(rig)["rae_node_spool_entries"] == 1, "the result waits")
    assert healthz(view(rig.agent))["queued"] == 1
    assert metrics(rig)["rae_node_spool_bytes"] > 0


def test_free_vram_is_that_of_the_guards_last_look(make_rig: MakeRig) -> None:
    """Contract: C8."""
    rig = make_rig()
    rig.owner.read = lambda: Reading("owner", vram_free_mb=512.0)  # type: ignore[method-assign]
    rig.agent.guard.wake()
    until(lambda: healthz(view(rig.agent))["vram_free"] == 512.0, "the guard has looked")
    assert metrics(rig)["rae_node_vram_free_bytes"] == 512 * 1048576


def test_a_port_that_is_taken_is_a_warning_and_the_agent_works(
    make_rig: MakeRig, free_port: int
) -> None:
    assert make_rig(metrics_port=free_port).run(params={"command": "true"})[0].status == "succeeded"
