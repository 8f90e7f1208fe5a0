"""What ended tasks leave in the ledger has a limit for each submitter; the oldest goes first."""

from __future__ import annotations

from typing import Any

import pytest

from rae_control.config import ControlConfig
from rae_control.ledger.base import fetch
from rae_control.maintenance import backup
from rae_control.mesh.mesh import Mesh
from rae_protocol.names import MAX_HISTORY

from .conftest import ECHO, Api, ManualClock
from .test_refusals import refused

MIB = 1024**2


@pytest.fixture
def config() -> ControlConfig:
    return ControlConfig(
        max_kept_bytes=3 * MIB, max_record_bytes=MIB, rate_limit_per_s=1e6, rate_limit_burst=1e6
    )


def large(task_id: str, **more: Any) -> dict[str, Any]:
    return {**ECHO, "task_id": task_id, "inputs": {"f": {"inline": "x" * MIB}}, **more}


def detail(api: Api, task_id: str, who: str = "alice") -> dict[str, Any]:
    with api.rae("GET", f"/tasks/{task_id}", who=who) as answer:
        return dict(answer.json)


def ended(api: Api, *tasks: dict[str, Any], who: str = "alice") -> None:
    for task in tasks:
        api.submit(task, who=who)
        with api.rae("POST", f"/tasks/{task['task_id']}/cancel", {}, who=who) as answer:
            assert answer.json["state"] == "cancelled"


def sound(mesh: Mesh) -> None:
    assert backup.check_folder(mesh.data, deep=False) == []


def test_specs_of_ended_tasks_have_a_limit_and_the_newest_stay(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    ended(api, large("of-bob"), who="bob")
    for number in range(6):
        ended(api, large(f"t{number}", labels={"n": str(number)}))
        clock.advance(1)
    api.submit(large("waits"))
    mesh.retention.quotas()
    found = [detail(api, f"t{number}") for number in range(6)]
    assert [task["dropped"] for task in found] == [True] * 4 + [False] * 2
    assert [task["spec"] is None for task in found] == [True] * 4 + [False] * 2
    # The record itself stays, in the list, too.
    assert (found[0]["state"], found[0]["labels"]) == ("cancelled", {"n": "0"})
    assert len(api.rae("GET", "/tasks?label=n=0").json["tasks"]) == 1
    assert api.rae("GET", "/tasks/t0/events").json["events"]
    assert not detail(api, "waits")["dropped"]
    assert not detail(api, "of-bob", "bob")["dropped"]
    sizes = mesh.read(lambda db: fetch(db, "SELECT sum(octet_length(spec)) AS n FROM specs"))
    assert sizes[0]["n"] < 5 * MIB
    sound(mesh)


def test_what_was_dropped_is_said_and_not_run_again(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    api.join("n1")
    keyed = large("done", idempotency_key="k", artifacts=[{"name": "out.txt"}])
    api.submit(keyed)
    assert api.result("n1", api.take("n1"), result={"answer": 42}).status_code == 200
    clock.advance(1)
    for number in range(4):
        ended(api, large(f"t{number}"))
        clock.advance(1)
    mesh.retention.quotas()
    answer = api.rae("GET", "/tasks/done/result")
    refused(answer, "result_dropped")
    assert detail(api, "done")["state"] == "succeeded"
    answer = api.rae("POST", "/tasks/t0/requeue", {})
    refused(answer, "not_requeueable")
    assert "the spec of t0 was dropped" in answer.json["message"]
    # A repeated submit and the idempotency key still know it; another body is another body.
    assert api.submit(keyed)[0] == {"task_id": "done", "state": "succeeded", "created": False}
    assert not api.submit({**keyed, "task_id": "again"})[0]["created"]
    refused(api.rae("POST", "/tasks", {**ECHO, "task_id": "done"}), "task_conflict")
    source = {"f": {"from_task": "done", "artifact": "out.txt"}}
    refused(api.rae("POST", "/tasks", {**ECHO, "inputs": source}), "unknown_input")
    sound(mesh)


def test_a_dropped_task_reads_its_blobs_no_more(api: Api, mesh: Mesh, clock: ManualClock) -> None:
    sha = api.blob(b"input")
    ended(api, {**ECHO, "task_id": "t", "inputs": {"f": {"sha256": sha}}})
    for number in range(4):
        clock.advance(1)
        ended(api, large(f"t{number}"))
    mesh.retention.quotas()
    clock.advance(2 * 86400)
    mesh.retention.sweep()
    assert api.rae("HEAD", f"/blobs/{sha}").status_code == 404
    sound(mesh)


def test_records_of_ended_tasks_have_a_limit_and_become_counts(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    labels = {f"l{number}": "x" * 500 for number in range(32)}
    for number in range(80):
        ended(api, {**ECHO, "task_id": f"t{number}", "labels": labels})
        clock.advance(0.1)
    assert mesh.states["cancelled"] == 80
    mesh.retention.quotas()
    left = mesh.states["cancelled"]
    assert 0 < left < 60
    assert api.rae("GET", "/tasks/t0").json["rc"] == "unknown_task"
    assert detail(api, "t79")["labels"] == labels
    sums = mesh.read(lambda db: fetch(db, "SELECT sum(tasks) AS n FROM summaries"))
    assert sums[0]["n"] == 80 - left
    sound(mesh)


def test_who_needs_all_that_ended_may_submit_no_more(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    labels = {f"l{number}": "x" * 500 for number in range(32)}
    names = [f"t{number}" for number in range(130)]
    api.submit({**ECHO, "task_id": "first"})
    for name in names:
        api.submit({**ECHO, "task_id": name, "labels": labels})
    waits = [{**ECHO, "depends_on": ["first", *some]} for some in (names[:65], names[65:])]
    api.submit(*waits)
    api.join("n1")
    for _ in names:
        api.submit({**ECHO, "task_id": "x", "priority": 0})
        ref = api.take("n1")
        if ref["task_id"] == "first":
            ref = api.take("n1")
        assert api.result("n1", ref).status_code == 200
    mesh.retention.quotas()
    answer = api.rae("POST", "/tasks", ECHO)
    refused(answer, "queue_full")
    assert "cannot be removed" in answer.json["message"]
    assert api.rae("POST", "/tasks", ECHO, who="bob").status_code == 201


def test_a_circle_of_cancels_and_requeues_ends(api: Api, mesh: Mesh) -> None:
    ended(api, {**ECHO, "task_id": "t"})
    for _ in range(MAX_HISTORY):
        answer = api.rae("POST", "/tasks/t/requeue", {})
        if answer.status_code != 200:
            break
        assert api.rae("POST", "/tasks/t/cancel", {}).status_code == 200
    refused(answer, "not_requeueable")
    assert f"has {MAX_HISTORY} lines or more" in answer.json["message"]
    assert len(api.rae("GET", "/tasks/t/events?limit=1000").json["events"]) < MAX_HISTORY + 3
    sound(mesh)


def test_the_history_of_requeued_tasks_counts_too(api: Api, mesh: Mesh) -> None:
    why, codes = {"reason": "\U0001f600" * 500}, set[int]()
    for number in range(12):
        task = {**ECHO, "task_id": f"t{number}"}
        codes.add(api.rae("POST", "/tasks", task).status_code)
        for verb in ["cancel", "requeue"] * 20:
            codes.add(api.rae("POST", f"/tasks/t{number}/{verb}", why).status_code)
        if not codes <= {200, 201}:
            break
    # No room for more of it, or an older task went while it was cancelled.
    assert codes & {404, 429}
    size = mesh.read(lambda db: db.execute("SELECT sum(octet_length(detail)) FROM events").get)
    assert size < 3 * MIB
    assert api.rae("POST", "/tasks", ECHO, who="bob").status_code == 201
    sound(mesh)
