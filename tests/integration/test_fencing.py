"""No two attempts of a task ever live at once: stopped agents, partitions, control away.

The tasks write down themselves when they live. Periods are the contract's, divided by 20.
"""

from __future__ import annotations

import json
import os
import signal
from contextlib import suppress
from pathlib import Path

import pytest

from rae_node.supervisor.process_tree import descendants
from tests.harness import MakeMesh
from tests.integration.harness import TTL, state
from tests.integration.stamps import Stamps, started
from tests.until import until
from tools.devmesh import SCALE


@pytest.fixture
def stamps(tmp_path: Path) -> Stamps:
    return Stamps(tmp_path)


def test_an_agent_stopped_for_longer_than_the_lease_reports_no_success(
    make_mesh: MakeMesh, stamps: Stamps
) -> None:
    mesh = make_mesh("n1", node={"task_paths": [str(stamps.tasks)]})
    task_id = mesh.rae.submit([stamps.body(60)])[0].task_id
    started(stamps, task_id)
    mesh.nodes["n1"].signal(signal.SIGSTOP)
    # The supervisor kills at the deadline, before control gives the task away, all by itself.
    until(lambda: state(mesh, task_id) == "queued", "control took the task back", 3 * TTL)
    silent = stamps.lived(task_id)[1][1]
    mesh.nodes["n1"].signal(signal.SIGCONT)
    started(stamps, task_id, 2)
    history = mesh.admin.task(task_id).history
    assert history[0].state == "interrupted"
    assert stamps.lived(task_id)[1][1] == silent
    assert stamps.ended(task_id) == []
    stamps.alive_alone(task_id)


def test_a_whole_node_stopped_for_longer_than_the_lease_does_no_more_when_it_goes_on(
    make_mesh: MakeMesh, stamps: Stamps
) -> None:
    mesh = make_mesh("n1", "n2", node={"task_paths": [str(stamps.tasks)]})
    task_id = mesh.rae.submit([stamps.body(60)])[0].task_id
    started(stamps, task_id)
    name = mesh.admin.task(task_id).node_id
    assert name
    below = [mesh.nodes[name].pid, *descendants(mesh.nodes[name].pid)]
    for pid in below:
        os.kill(pid, signal.SIGSTOP)
    started(stamps, task_id, 2)
    for pid in reversed(below):  # the program first: it needs its supervisor for nothing
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGCONT)
    # Its agent comes back, and says so in its own log: whatever could run of it has had its turn.
    log = mesh.nodes[name].log
    until(lambda: "task_ended" in log.read_text(), "the agent has seen the end", 30)
    stamps.alive_alone(task_id)
    assert stamps.ended(task_id) == []


def test_a_supervisor_that_is_stopped_while_its_lease_is_renewed_costs_its_task_nothing(
    make_mesh: MakeMesh, stamps: Stamps
) -> None:
    mesh = make_mesh("n1", node={"task_paths": [str(stamps.tasks)]})
    task_id = mesh.rae.submit([stamps.body(60, max_attempts=1)])[0].task_id
    started(stamps, task_id)
    for pid in mesh.supervisors():
        os.kill(pid, signal.SIGSTOP)
    started(stamps, task_id, 2)  # the kernel ended the first one at the deadline that it knew
    view = mesh.admin.task(task_id)
    assert (view.failures, view.history[0].reason) == (0, "yield_deadline")
    stamps.alive_alone(task_id)


def test_a_stopped_supervisor_does_not_keep_its_task_alive(
    make_mesh: MakeMesh, stamps: Stamps
) -> None:
    mesh = make_mesh("n1", "n2", node={"task_paths": [str(stamps.tasks)]})
    task_id = mesh.rae.submit([stamps.body(60, requirements={"nodes": ["n1", "n2"]})])[0].task_id
    started(stamps, task_id)
    name = mesh.admin.task(task_id).node_id
    assert name
    for pid in mesh.supervisors():
        os.kill(pid, signal.SIGSTOP)
    mesh.kill("gunicorn", signal.SIGSTOP)
    mesh.kill("worker", signal.SIGSTOP)
    # No heartbeat is answered any more: the agent itself must end the task at its deadline.
    until(lambda: stamps.silent(task_id), "the agent killed the task", 3 * TTL)
    mesh.kill("worker", signal.SIGCONT)
    mesh.kill("gunicorn", signal.SIGCONT)
    started(stamps, task_id, 2)
    stamps.alive_alone(task_id)


def test_control_away_for_five_minutes(make_mesh: MakeMesh, stamps: Stamps) -> None:
    away = 300 / SCALE
    mesh = make_mesh(
        "n1", node={"task_paths": [str(stamps.tasks)], "max_concurrent_cpu": 2},
        control={"max_lease_ttl_s": 3600},
    )  # fmt: skip
    patient, strict = mesh.rae.submit(
        [stamps.body(away * 0.6, lease_ttl_s=600 / SCALE), stamps.body(away * 0.6)]
    )
    started(stamps, patient.task_id)
    started(stamps, strict.task_id)
    token_before = mesh.admin.events().events
    registrations = sum(e.reason == "registered" for e in token_before)
    mesh.control.stop()
    until(lambda: stamps.ended(patient.task_id), "the patient task ended", away)
    until(lambda: stamps.silent(strict.task_id), "the strict one was killed", away)
    mesh.start_control()
    view = mesh.rae.wait(patient.task_id, 30)
    assert (view.state.value, view.attempts) == ("succeeded", 1)
    assert stamps.ended(patient.task_id) == [1]
    view = mesh.rae.wait(strict.task_id, 60)
    assert (view.state.value, view.attempts) == ("succeeded", 2)
    assert stamps.ended(strict.task_id) == [2]
    stamps.alive_alone(strict.task_id)
    events = mesh.admin.events().events
    assert sum(e.reason == "registered" for e in events) == registrations
    for task_id in (patient.task_id, strict.task_id):
        assert sum(e.task_id == task_id and e.to_state == "succeeded" for e in events) == 1


def test_a_killed_agent_leaves_nothing_alive_and_its_task_is_done_elsewhere(
    make_mesh: MakeMesh, stamps: Stamps
) -> None:
    mesh = make_mesh("n1", "n2", node={"task_paths": [str(stamps.tasks)]})
    task_id = mesh.rae.submit([stamps.body(3)])[0].task_id
    started(stamps, task_id)
    first = str(mesh.admin.task(task_id).node_id)
    mesh.nodes[first].kill()
    view = mesh.rae.wait(task_id, 30)
    assert view.state.value == "succeeded"
    assert view.history[-1].node_id != first
    assert stamps.ended(task_id) == [2]
    stamps.alive_alone(task_id)
    assert list((mesh.nodes[first].root / "workdir").iterdir()) == []


def test_an_owner_who_returns_stops_the_work_within_a_second(
    make_mesh: MakeMesh, stamps: Stamps
) -> None:
    mesh = make_mesh("n1", "n2", node={"task_paths": [str(stamps.tasks)]})
    task_id = mesh.rae.submit([stamps.body(3)])[0].task_id
    started(stamps, task_id)
    first = str(mesh.admin.task(task_id).node_id)
    answer = json.loads(mesh.nodes[first].owner("pause", "--json"))
    assert answer["stopped"] == 1
    assert answer["stopped_ms"] < 1000
    view = mesh.rae.wait(task_id, 30)
    assert (view.state.value, view.interruptions, view.failures) == ("succeeded", 1, 0)
    assert view.history[-1].node_id != first
    stamps.alive_alone(task_id)
    reasons = [e.reason for e in mesh.rae.events(task_id=task_id).events]
    assert "yield_paused" in reasons


def test_a_cancelled_task_is_dead_within_a_second(make_mesh: MakeMesh, stamps: Stamps) -> None:
    mesh = make_mesh("n1", node={"task_paths": [str(stamps.tasks)]})
    task_id = mesh.rae.submit([stamps.body(60)])[0].task_id
    started(stamps, task_id)
    assert mesh.rae.cancel(task_id).state.value == "cancelled"
    until(lambda: stamps.silent(task_id), "the cancelled task is dead", 2)
    assert stamps.ended(task_id) == []
    other = mesh.rae.submit([stamps.body(0.1)])[0].task_id
    assert mesh.rae.wait(other, 20).state.value == "succeeded"


def test_a_program_that_fails_costs_its_node_nothing(make_mesh: MakeMesh) -> None:
    mesh = make_mesh("n1")
    body = {"kind": "cli", "params": {"command": "false"}, "max_attempts": 4}
    view = mesh.rae.wait(mesh.rae.submit([body])[0].task_id, 60)
    assert (view.state.value, view.failures, view.interruptions) == ("failed", 4, 0)
    assert view.error is not None
    assert view.error.code == "E_EXIT"
    assert mesh.admin.node("n1").state == "online"
