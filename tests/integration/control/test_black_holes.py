"""A broken node, or one that lacks a program, costs a task one attempt there at most."""

from __future__ import annotations

from typing import Any

import gevent
import pytest

from rae_control.mesh.mesh import Mesh
from tests.integration.control.harness import ECHO, Api, ManualClock, tick

FAILED = {"code": "E_EXIT", "message": "exit code 1"}
DENIED = {"code": "E_DENY", "message": "argument 1 matches nothing"}


def has(*commands: str, tasks: tuple[str, ...] = ()) -> dict[str, Any]:
    caps = {"runners": ["cli", "python"], "commands": list(commands), "python_tasks": list(tasks)}
    return {"capabilities": caps}


def call(command: str) -> dict[str, Any]:
    return {"kind": "cli", "params": {"command": command}}


def fails(api: Api, name: str, error: dict[str, str] = FAILED) -> str:
    """The node takes a task, and it fails there; returns the task's state."""
    return str(api.result(name, api.take(name), "failed", error=error).json["state"])


def attempt(api: Api, mesh: Mesh, name: str, status: str, **extra: Any) -> None:
    """One poll; what comes, if anything, ends so."""
    if api.poll(name, "slots=cpu0").get("task"):
        (lease,) = mesh.leases.of_node(name)
        ref = {"task_id": lease.task_id, "attempt": lease.attempt, "lease_id": lease.lease_id}
        api.node(name, "POST", "/tasks/ack", ref)
        api.result(name, ref, status, **extra)


def test_a_command_goes_only_to_nodes_that_have_it(api: Api) -> None:
    api.join("bare", **has("true"))
    api.join("rich", **has("true", "ffmpeg", tasks=("example",)))
    ids = [ref["task_id"] for ref in api.submit(
        call("ffmpeg"), {"kind": "python", "params": {"task": "tasks.example:run"}}
    )]  # fmt: skip
    reason = api.poll("bare")["reasons"][0]
    assert reason["code"] == "no_match" and "it needs the" in reason["message"]
    assert {api.take("rich")["task_id"], api.take("rich")["task_id"]} == set(ids)


def test_a_command_waits_for_the_node_that_has_it_and_says_so(api: Api) -> None:
    api.join("bare", **has("true"))
    api.join("rich", **has("ffmpeg"))
    api.node("rich", "POST", "/nodes/goodbye", {"node_id": "rich"})
    (ref,) = api.submit(call("ffmpeg"))
    assert not api.poll("bare").get("task")
    why = " ".join(api.task(ref["task_id"])["why"])
    assert "it needs the command ffmpeg" in why
    assert "Node rich would fit, but it is offline" in why


def test_a_command_that_no_node_has_is_refused_at_once_with_what_there_is(api: Api) -> None:
    api.join("n1", **has("true"))
    (ref,) = api.submit(call("rm"))
    taken = api.take("n1")
    assert taken["task_id"] == ref["task_id"]
    answer = api.result("n1", taken, "failed", error=DENIED)
    assert answer.json["state"] == "failed"
    assert api.task(ref["task_id"])["error"]["code"] == "E_DENY"


def test_a_task_that_one_node_denies_is_offered_to_each_other_node_once(api: Api) -> None:
    """Contract: C7."""
    for name in ("n1", "n2", "n3"):
        api.join(name, machine=name, **has("true"))
    api.join("other", machine="other", **has("cat"))
    (ref,) = api.submit(call("true"))
    for name in ("n1", "n2"):
        assert fails(api, name, DENIED) == "queued"
        assert not api.poll(name).get("task"), "it is not offered there again"
        view = api.task(ref["task_id"])
        assert (view["failures"], view["interruptions"]) == (0, 0)
    assert fails(api, "n3", DENIED) == "failed"
    view = api.task(ref["task_id"])
    assert (view["attempts"], view["error"]["code"]) == (3, "E_DENY")
    # Its submitter had the allow-lists changed, and starts it afresh: everywhere again.
    assert api.rae("POST", f"/tasks/{ref['task_id']}/requeue").json["state"] == "queued"
    assert api.result("n1", api.take("n1")).json["state"] == "succeeded"


def test_hundreds_of_denied_tasks_keep_nothing_else_from_the_node(api: Api) -> None:
    api.join("n1", machine="n1", slots=["cpu0"], **has("true"))
    api.join("n2", machine="n2", slots=["cpu0"], **has("true"))
    api.submit(*[call("true")] * 250)
    for _ in range(210):
        ref = api.take("n1", "slots=cpu0")
        assert api.result("n1", ref, "failed", error=DENIED).json["state"] == "queued"
    assert api.take("n1", "slots=cpu0")


def test_a_denied_task_fails_once_no_other_node_is_left(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    api.join("n1", machine="n1", **has("true"))
    api.join("n2", machine="n2", **has("true"))
    (ref,) = api.submit(call("true"))
    assert fails(api, "n1", DENIED) == "queued"
    api.rae("POST", "/nodes/n2/revoke", {}, who="root")
    assert "denied there" in " ".join(api.task(ref["task_id"])["why"])
    tick(mesh, clock, 30)
    assert api.task(ref["task_id"])["state"] == "queued", "the other one may come back"
    tick(mesh, clock, 40)
    view = api.task(ref["task_id"])
    assert (view["state"], view["error"]["code"], view["failures"]) == ("failed", "E_DENY", 1)
    assert view["error"]["message"] == DENIED["message"]


def test_what_no_node_has_is_refused_once_and_not_by_each_of_them(api: Api) -> None:
    for name in ("n1", "n2"):
        api.join(name, machine=name, **has("true"))
    api.submit(call("rm"))
    assert fails(api, "n1", DENIED) == "failed"


def test_a_denied_task_wakes_the_node_that_may_take_it(api: Api) -> None:
    for name in ("n1", "n2"):
        api.join(name, machine=name, **has("true"))
    api.submit(call("true"))
    ref = api.take("n1")
    older = gevent.spawn(api.poll, "n1", "wait=20&slots=cpu1")
    gevent.sleep(0.02)
    waiting = gevent.spawn(api.poll, "n2", "wait=20&slots=cpu0")
    gevent.sleep(0.02)
    api.result("n1", ref, "failed", error=DENIED)
    assert waiting.get(timeout=3)["task"]
    api.poll("n1", "slots=")
    assert older.get(timeout=3)["reasons"][0]["code"] == "newer_poll"


def test_a_task_that_failed_on_a_node_goes_to_another_while_one_fits(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    api.join("hole", machine="hole")
    api.join("good", machine="good")
    (ref,) = api.submit(ECHO)
    fails(api, "hole")
    tick(mesh, clock, 6)
    assert not api.poll("hole").get("task")
    assert "failed there" in " ".join(api.task(ref["task_id"])["why"])
    later = api.submit(ECHO)[0]["task_id"]
    assert api.take("hole")["task_id"] == later, "it looks past the one that others go before"
    assert api.take("good")["task_id"] == ref["task_id"]


def test_where_no_other_node_takes_work_the_same_one_tries_again(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    api.join("n1", machine="n1")
    api.join("away", machine="away")
    beat = {"node_id": "away", "availability": "owner"}
    api.node("away", "POST", "/nodes/heartbeat", beat)
    (ref,) = api.submit(ECHO)
    fails(api, "n1")
    tick(mesh, clock, 6)
    assert api.take("n1")["task_id"] == ref["task_id"]


def test_others_that_do_not_come_in_ten_minutes_lose_their_turn(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    api.join("n1", machine="n1")
    api.join("slow", machine="slow")
    (ref,) = api.submit(ECHO)
    fails(api, "n1")
    for _ in range(11):
        tick(mesh, clock, 60)
        for name in ("n1", "slow"):
            api.node(name, "POST", "/nodes/heartbeat", {"node_id": name})
    assert api.take("n1")["task_id"] == ref["task_id"]


def shown_while_it_eats(
    api: Api, mesh: Mesh, clock: ManualClock, ids: list[str], *others: str
) -> list[str]:
    """Node `hole` fails whatever it gets, until the others did it all: what was shown of it."""
    shown: list[str] = []
    for round_ in range(200):
        if not shown or shown[-1] != "cordoned":
            attempt(api, mesh, "hole", "failed", error=FAILED)
        view = api.rae("GET", "/nodes/hole", who="root").json
        shown.append(view.get("suspect") or "" if view["state"] == "online" else "cordoned")
        for name in (others[round_ % len(others) :] + others)[: len(others)]:
            attempt(api, mesh, name, "succeeded")  # each comes first in its turn
        tick(mesh, clock, 1)
        for name in ("hole", *others):
            api.node(name, "POST", "/nodes/heartbeat", {"node_id": name})
        if all(api.task(task_id)["state"] == "succeeded" for task_id in ids):
            break
    assert [api.task(task_id)["state"] for task_id in ids] == ["succeeded"] * len(ids)
    return shown


def test_a_node_that_eats_the_queue_is_shown_then_cordoned_and_its_tasks_succeed_elsewhere(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    for name in ("hole", "good", "fine"):
        api.join(name, machine=name, slots=["cpu0"])
    ids = [ref["task_id"] for ref in api.submit(*[ECHO] * 30)]
    shown = shown_while_it_eats(api, mesh, clock, ids, "good", "fine")
    view = api.rae("GET", "/nodes/hole", who="root").json
    assert view["state"] == "cordoned"
    assert "different tasks in a row failed here" in view["reason"]
    assert any(set(shown) - {"cordoned", ""}), "it was shown before"
    assert sum(api.task(task_id)["failures"] for task_id in ids) <= 10
    api.rae("POST", "/nodes/hole/resume", {}, who="root")
    view = api.rae("GET", "/nodes/hole", who="root").json
    assert view["state"] == "online" and not view.get("suspect")


@pytest.mark.parametrize("trusted", [True, False])
def test_a_single_other_node_cordons_it_only_where_that_one_is_trusted(
    api: Api, mesh: Mesh, clock: ManualClock, trusted: bool
) -> None:
    api.join("hole", machine="hole", slots=["cpu0"])
    api.enrol("other", trusted=trusted)
    assert api.register("other", machine="other", slots=["cpu0"], trusted=True).status_code == 200
    ids = [ref["task_id"] for ref in api.submit(*[ECHO] * 30)]
    shown = shown_while_it_eats(api, mesh, clock, ids, "other")
    assert ("cordoned" in shown) == trusted
    assert any(set(shown) - {"cordoned", ""}), "it is shown"
