"""A captive portal or proxy between agents and control is never taken for control.

Real control, agents and programs, with `tools/intermediary.py` in between. The tasks write down
themselves when they live, on CLOCK_BOOTTIME.
"""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest

from rae_protocol.client import RaeClient
from rae_protocol.errors import Unreachable
from tests.harness import MakeMesh
from tests.integration.harness import TTL
from tests.integration.stamps import Stamps, started
from tests.until import until
from tools.devmesh import DevMesh
from tools.scenarios.intermediary import EVERY, Instead, Intermediary, Request, Rule, Script

Between = Callable[[DevMesh], Intermediary]
BELIEVED = ("302", "empty 200")  # once, as answers to an ack


@pytest.fixture
def stamps(tmp_path: Path) -> Stamps:
    return Stamps(tmp_path)


@pytest.fixture
def between() -> Iterator[Between]:
    with ExitStack() as stack:
        yield lambda mesh: stack.enter_context(Intermediary(mesh.url))


def join(mesh: DevMesh, name: str, url: str, stamps: Stamps) -> None:
    """A node that reaches control at this URL."""
    mesh.add_node(name, {"rae_endpoint": url, "task_paths": [str(stamps.tasks)]})


def calls(*ends: str) -> Callable[[Request], bool]:
    return lambda request: request.path.endswith(ends)


def first_of(*rules: Rule) -> Rule:
    """What the first rule says that says anything."""
    return lambda request: next(filter(None, (rule(request) for rule in rules)), None)


def events(mesh: DevMesh, node: str) -> list[str]:
    """What an agent logged."""
    lines = mesh.nodes[node].log.read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["event"] for line in lines if line.startswith("{")]


def succeeded_once(mesh: DevMesh, task_id: str) -> bool:
    states = [event.to_state for event in mesh.admin.events(task_id=task_id).events]
    return states.count("succeeded") == 1


@pytest.mark.parametrize("answer", BELIEVED)
def test_an_ack_that_control_never_got_starts_no_program(
    make_mesh: MakeMesh, stamps: Stamps, between: Between, answer: str
) -> None:
    mesh = make_mesh()
    portal = between(mesh)
    join(mesh, "n1", portal.url, stamps)
    mesh.wait_node("n1", "online")
    acks = Script(calls("/tasks/ack"), [Instead(answer, reaches=False)] * 8)
    # With heartbeats control would say what it knows of the lease.
    beats = Script(lambda request: bool(portal.replaced) and calls("/heartbeat")(request),
                   [Instead("302", reaches=False)] * 6)  # fmt: skip
    portal.rule = first_of(acks, beats)
    task_id = mesh.rae.submit([stamps.body(TTL)])[0].task_id
    until(lambda: portal.replaced, "the ack was answered by the portal", 20)
    join(mesh, "n2", mesh.url, stamps)
    view = mesh.rae.wait(task_id, 60)
    assert view.state.value == "succeeded"
    stamps.alive_alone(task_id)
    assert 1 not in stamps.lived(task_id)
    assert portal.replaced[answer] >= 4


@pytest.mark.parametrize("reaches", [False, True])
def test_whatever_answers_an_ack_the_task_runs_once(
    make_mesh: MakeMesh, stamps: Stamps, between: Between, reaches: bool
) -> None:
    mesh = make_mesh()
    portal = between(mesh)
    join(mesh, "n1", portal.url, stamps)
    join(mesh, "n2", mesh.url, stamps)
    acks = Script(
        calls("/tasks/ack"), [instead for instead in EVERY if instead.reaches is reaches] * 2
    )
    portal.rule = acks
    mesh.wait_node("n1", "online")
    mesh.wait_node("n2", "online")
    tasks = mesh.rae.submit([stamps.body(0.5) for _ in range(6)])
    for ref in tasks:
        assert mesh.rae.wait(ref.task_id, 60).state.value == "succeeded"
        stamps.alive_alone(ref.task_id)
        assert len(stamps.ended(ref.task_id)) == 1
    assert portal.replaced.total() >= 4


def test_a_result_is_kept_until_control_has_it_and_the_first_one_stays(
    make_mesh: MakeMesh, stamps: Stamps, between: Between
) -> None:
    mesh = make_mesh()
    portal = between(mesh)
    join(mesh, "n1", portal.url, stamps)
    mesh.wait_node("n1", "online")
    script = Script(calls("/tasks/result"), EVERY)
    portal.rule = script
    bodies = [stamps.body(0.1), stamps.body(0.1), stamps.body(0.1)]
    bodies[1]["params"]["params"]["kib"] = 64
    bodies[1]["artifacts"] = [{"name": "bytes"}]
    for ref in mesh.rae.submit(bodies):
        view = mesh.rae.wait(ref.task_id, 60)
        assert (view.state.value, view.attempts, view.failures) == ("succeeded", 1, 0)
        assert view.result["attempt"] == 1
        assert [item.sha256 for item in view.artifacts] == [
            text for text in [view.result.get("sha256")] if text
        ]
        assert stamps.ended(ref.task_id) == [1]
        assert succeeded_once(mesh, ref.task_id)
    until(lambda: events(mesh, "n1").count("result_delivered") == 3, "all were confirmed", 30)
    assert script.left == []
    assert not {"result_refused", "result_dropped"} & set(events(mesh, "n1"))


def test_a_yield_is_delivered_in_the_end(
    make_mesh: MakeMesh, stamps: Stamps, between: Between
) -> None:
    mesh = make_mesh()
    portal = between(mesh)
    join(mesh, "n1", portal.url, stamps)
    mesh.wait_node("n1", "online")
    # A lease that outlasts the portal's answers: only the yield can bring the task back.
    task_id = mesh.rae.submit([stamps.body(3, lease_ttl_s=120)])[0].task_id
    started(stamps, task_id)
    script = Script(calls("/tasks/yield"), [instead for instead in EVERY if not instead.reaches])
    portal.rule = script
    mesh.nodes["n1"].owner("pause")
    until(lambda: "yield_delivered" in events(mesh, "n1"), "the yield was delivered", 60)
    assert script.left == []
    assert mesh.admin.task(task_id).reason == "yield_paused"
    mesh.nodes["n1"].owner("resume")
    view = mesh.rae.wait(task_id, 60)
    assert (view.state.value, view.interruptions, view.failures) == ("succeeded", 1, 0)
    stamps.alive_alone(task_id)


def test_inputs_and_artifacts_come_from_control_alone(
    make_mesh: MakeMesh, stamps: Stamps, between: Between, tmp_path: Path
) -> None:
    mesh = make_mesh()
    portal = between(mesh)
    join(mesh, "n1", portal.url, stamps)
    mesh.wait_node("n1", "online")
    rae = RaeClient(portal.url, mesh.credentials()["submit_token"])
    content = os.urandom(300_000)
    uploads = Script(lambda request: "/blobs/" in request.path, EVERY[:4])
    downloads = Script(lambda request: "/inputs/" in request.path, EVERY)
    portal.rule = first_of(uploads, downloads)
    sha256 = rae.upload_blob(content)
    body = {
        "kind": "cli", "params": {"command": "sha256sum", "args": ["file.bin"]},
        "inputs": {"file.bin": {"sha256": sha256}},
        "artifacts": [{"name": "out.txt", "type": "text/plain"}],
    }  # fmt: skip
    view = mesh.rae.wait(mesh.rae.submit([body])[0].task_id, 60)
    assert (view.state.value, view.attempts) == ("succeeded", 1), view.error
    assert downloads.left == []
    portal.rule = Script(lambda request: "/artifacts/" in request.path, EVERY[:4])
    rae.fetch_artifact(view.task_id, "out.txt", tmp_path / "out.txt")
    expected = f"{hashlib.sha256(content).hexdigest()}  file.bin\n"
    assert (tmp_path / "out.txt").read_text() == expected


def test_a_node_behind_a_portal_registers_polls_and_beats_in_the_end(
    make_mesh: MakeMesh, stamps: Stamps, between: Between
) -> None:
    mesh = make_mesh()
    portal = between(mesh)
    scripts = [
        Script(calls("/nodes/register"), EVERY[:3]), Script(calls("/nodes/heartbeat"), EVERY[3:6]),
        Script(calls("/tasks/poll"), EVERY[:6]), Script(calls("/tasks/log"), EVERY),
        Script(calls("/tasks/progress"), EVERY),
    ]  # fmt: skip
    portal.rule = first_of(*scripts)
    join(mesh, "n1", portal.url, stamps)
    mesh.wait_node("n1", "online", 60)
    task_id = mesh.rae.submit([stamps.body(0.5)])[0].task_id
    assert mesh.rae.wait(task_id, 60).state.value == "succeeded"
    until(lambda: not any(s.left for s in scripts[:3]), "the portal gave every answer", 60)
    assert mesh.nodes["n1"].running
    assert mesh.admin.node("n1").state == "online"
    stamps.alive_alone(task_id)


def test_orders_and_refusals_in_controls_words_end_no_work(
    make_mesh: MakeMesh, stamps: Stamps, between: Between
) -> None:
    """Who sits in between can write what control writes, but not sign it."""
    mesh = make_mesh()
    forger = between(mesh)
    join(mesh, "n1", forger.url, stamps)
    mesh.wait_node("n1", "online")
    task_id = mesh.rae.submit([stamps.body(3, lease_ttl_s=120)])[0].task_id
    started(stamps, task_id)
    told = {"incarnation": "another", "wanted": "drain", "commands": [{"command": "drain"}]}
    forged = [Instead("200 OK", reaches=False, json=json.dumps(told).encode())]
    for status, rc in (
        ("401 Unauthorized", "superseded"), ("409 Conflict", "node_revoked"),
        ("401 Unauthorized", "not_enrolled"), ("401 Unauthorized", "register_again"),
    ):  # fmt: skip
        said = {"rc": rc, "message": "forged", "detail": {}}
        forged.append(Instead(status, reaches=False, json=json.dumps(said).encode()))
    script = Script(calls("/heartbeat", "/poll", "/progress", "/log", "/register"), forged * 2)
    forger.rule = script
    view = mesh.rae.wait(task_id, 60)
    assert (view.state.value, view.attempts, view.interruptions) == ("succeeded", 1, 0)
    assert stamps.ended(task_id) == [1]
    until(lambda: not script.left, "every forged answer was given", 60)
    assert mesh.nodes["n1"].running
    assert not {"session_over", "control_has_another_past"} & set(events(mesh, "n1"))
    assert events(mesh, "n1").count("registered") == 1


def test_heartbeats_that_a_portal_answers_renew_nothing(
    make_mesh: MakeMesh, stamps: Stamps, between: Between
) -> None:
    mesh = make_mesh()
    portal = between(mesh)
    join(mesh, "n1", portal.url, stamps)
    mesh.wait_node("n1", "online")
    task_id = mesh.rae.submit([stamps.body(1.5 * TTL)])[0].task_id
    started(stamps, task_id)
    portal.rule = lambda request: (
        Instead("200 HTML", reaches=False) if calls("/heartbeat")(request) else None
    )
    join(mesh, "n2", mesh.url, stamps)
    started(stamps, task_id, 2)
    assert mesh.admin.task(task_id).history[0].state == "interrupted"
    assert stamps.ended(task_id) == []
    stamps.alive_alone(task_id)


@pytest.mark.parametrize(
    "instead", EVERY, ids=lambda instead: f"{instead.answer}, {instead.reaches}"
)
def test_the_message_says_that_it_was_not_controls_answer(
    control: DevMesh, between: Between, instead: Instead
) -> None:
    portal = between(control)
    portal.rule = lambda _: instead
    rae = RaeClient(portal.url, control.credentials()["submit_token"], sleep=lambda _: None)
    with pytest.raises(Unreachable, match="this is not control's answer"):
        rae.tasks()


def test_a_requeue_whose_answer_is_lost_starts_a_task_once(
    control: DevMesh, between: Between
) -> None:
    portal = between(control)
    portal.rule = Script(calls("/requeue"), [Instead("empty 200", reaches=True)])
    task_id = control.rae.submit([{"kind": "nobody-runs-it"}])[0].task_id
    control.rae.cancel(task_id)

    def it_ends_again(_seconds: float) -> None:
        control.rae.cancel(task_id)

    rae = RaeClient(portal.url, control.credentials()["submit_token"], sleep=it_ends_again)
    with pytest.raises(Unreachable, match=rf"may have acted.*raectl task {task_id}"):
        rae.requeue(task_id)
    left = [event.from_state for event in control.rae.events(task_id=task_id).events]
    assert left.count("cancelled") == 1


def raectl(url: str, token: str, *words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-m", "rae_control.cli.raectl", *words],
        env={**os.environ, "RAE_URL": url, "RAE_TOKEN": token},
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def test_raectl_ends_with_3_and_says_where_it_was_sent(control: DevMesh, between: Between) -> None:
    portal = between(control)
    portal.rule = lambda _: Instead("302", reaches=False)
    token: Any = control.credentials()["admin_token"]
    done = raectl(portal.url, token, "tokens", "list")
    assert done.returncode == 3, done.stderr
    assert "answered 302 to http://portal.invalid/login: this is not control's" in done.stderr
    assert "Check the URL and that control runs." in done.stderr


def test_what_passes_through_is_unchanged(control: DevMesh, between: Between) -> None:
    portal = between(control)
    straight = RaeClient(control.url, control.credentials()["submit_token"])
    through = RaeClient(portal.url, control.credentials()["submit_token"])
    content, methods = os.urandom(2_000_000), list[str]()
    portal.rule = lambda request: methods.append(request.method)
    sha256 = through.upload_blob(content)
    assert through.upload_blob(content) == straight.upload_blob(content) == sha256
    assert methods == ["HEAD", "PUT", "HEAD"]
    ref = through.submit([{"kind": "cli", "inputs": {"f": {"sha256": sha256}}}])[0]
    assert through.task(ref.task_id) == straight.task(ref.task_id)
    assert through.cancel(ref.task_id).state.value == "cancelled"
    assert portal.replaced.total() == 0
