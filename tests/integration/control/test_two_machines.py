"""A node_id on a second machine: work on the first one may be alive, so it is fenced."""

from __future__ import annotations

from typing import Any

import gevent

from rae_control.mesh.mesh import Mesh
from tests.integration.control.harness import ECHO, Api, ManualClock, tick, until

SECOND = {"machine": "m2", "instance": "i2"}


def running(api: Api, ttl: float = 3600) -> dict[str, Any]:
    """n1 runs a task whose lease outlives the node's silence."""
    api.join("n1")
    api.submit({**ECHO, "lease_ttl_s": ttl, "timeout_s": 7200})
    return api.take("n1")


def move(api: Api, mesh: Mesh, clock: ManualClock) -> None:
    """The first machine falls silent, and the second one takes the node_id."""
    assert api.register("n1", **SECOND).json["rc"] == "node_id_in_use"
    tick(mesh, clock, 122)
    assert api.register("n1", **SECOND).status_code == 200


def waits_for_the_first_machine(api: Api, mesh: Mesh, clock: ManualClock, task_id: str) -> None:
    """The task starts again only once its first lease could not last any more."""
    assert api.task(task_id)["state"] == "waiting"
    assert api.poll("n1").get("task") is None
    tick(mesh, clock, 100)
    assert api.task(task_id)["state"] == "waiting"
    tick(mesh, clock, 3502)
    assert api.task(task_id)["state"] == "queued"


def test_a_second_registration_of_the_second_machine_does_not_free_the_first_one_s_task(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    ref = running(api)
    move(api, mesh, clock)
    assert api.register("n1", machine="m2", instance="i3").status_code == 200
    waits_for_the_first_machine(api, mesh, clock, ref["task_id"])


def test_a_goodbye_of_the_second_machine_does_not_free_the_first_one_s_task(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    ref = running(api)
    move(api, mesh, clock)
    assert api.node("n1", "POST", "/nodes/goodbye", {"node_id": "n1"}).status_code == 200
    assert api.register("n1", **SECOND).status_code == 200
    waits_for_the_first_machine(api, mesh, clock, ref["task_id"])


def test_a_node_revoked_and_enrolled_on_a_second_machine_does_not_free_the_first_one_s_task(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    ref = running(api)
    api.rae("POST", "/nodes/n1/revoke", {}, who="root")
    api.enrol("n1")
    for _ in range(2):
        assert api.register("n1", **SECOND).status_code == 200
    waits_for_the_first_machine(api, mesh, clock, ref["task_id"])


def test_a_copied_spool_does_not_hand_the_first_machine_s_task_back(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    ref = running(api)
    move(api, mesh, clock)
    answer = api.node("n1", "POST", "/tasks/yield", {**ref, "reason": "shutdown"})
    assert answer.json["rc"] == "stale_lease"
    assert api.register("n1", **SECOND, unfinished=[ref]).json["commands"][0]["command"] == "cancel"
    waits_for_the_first_machine(api, mesh, clock, ref["task_id"])


def test_the_first_machine_s_own_return_frees_its_task_at_once(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    ref = running(api)
    move(api, mesh, clock)
    tick(mesh, clock, 122)
    assert api.register("n1", instance="i4").status_code == 200
    assert api.task(ref["task_id"])["state"] == "queued"


def test_the_same_machine_s_next_agent_frees_its_tasks_at_once(api: Api) -> None:
    ref = running(api)
    assert api.register("n1", instance="i2").status_code == 200
    assert api.task(ref["task_id"])["state"] == "queued"


def test_a_heartbeat_that_comes_while_its_lease_is_ended_gets_it_back_as_over(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    api.join("n1", slots=[f"cpu{number}" for number in range(20)])
    api.submit(*[{**ECHO} for _ in range(20)])
    slots = "slots=" + ",".join(f"cpu{number}" for number in range(20))
    refs = [api.take("n1", slots) for _ in range(20)]
    tick(mesh, clock, 119)
    clock.advance(2)
    answers: list[dict[str, Any]] = []
    beat = {"node_id": "n1", "leases": refs}
    late = gevent.spawn(
        lambda: answers.append(api.node("n1", "POST", "/nodes/heartbeat", beat).json)
    )
    mesh.reaper.tick()  # waits for its commits, and the heartbeat comes between them
    late.join()
    over = {command["lease_id"] for command in answers[0]["commands"]}
    open_now = {lease.lease_id for lease in mesh.leases}
    assert {ref["lease_id"] for ref in refs} == over | open_now
    assert not over & open_now


def bearer(api: Api, secret: str) -> dict[str, str]:
    """A session of a client that names no machine."""
    body = {"node_id": "plain", "capabilities": {}}
    headers = {"Authorization": f"Bearer {secret}"}
    token = api.client.post("/nodes/register", json=body, headers=headers).json["node_token"]
    return {"Authorization": f"Bearer {token}"}


def test_a_client_that_names_no_machine_delivers_after_it_registered_again(api: Api) -> None:
    secret = api.enrol("plain", "bearer")
    task_id = api.submit(ECHO)[0]["task_id"]
    first = bearer(api, secret)
    until(
        lambda: api.client.get("/tasks/poll", headers=first).json.get("task"),
        "the first machine gets the task",
    )
    again = bearer(api, secret)
    outcome = {"task_id": task_id, "status": "succeeded"}
    answer = api.client.post("/tasks/result", json=outcome, headers=again)
    assert answer.json["state"] == "succeeded"


def test_a_goodbye_speaks_for_its_own_session_where_no_machine_is_named(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    secret = api.enrol("plain", "bearer")
    task_id = api.submit(ECHO)[0]["task_id"]
    first = bearer(api, secret)
    until(
        lambda: api.client.get("/tasks/poll", headers=first).json.get("task"),
        "the first machine gets the task",
    )
    second = bearer(api, secret)
    api.client.post("/nodes/goodbye", json={"node_id": "plain"}, headers=second)
    assert api.task(task_id)["state"] == "waiting"
    tick(mesh, clock, 122)
    assert api.task(task_id)["state"] == "queued"


def test_a_lease_that_only_unnamed_heartbeats_held_is_fenced_when_it_ends(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    secret = api.enrol("plain", "bearer")
    task_id = api.submit({**ECHO, "timeout_s": 60})[0]["task_id"]
    headers = bearer(api, secret)
    until(
        lambda: api.client.get("/tasks/poll", headers=headers).json.get("task"),
        "the first machine gets the task",
    )
    states = []
    for _ in range(60 + 3 * 120 + 2):
        tick(mesh, clock, 1)
        api.client.post("/nodes/heartbeat", json={"node_id": "plain"}, headers=headers)
        states.append(api.task(task_id)["state"])
    changes = [state for state, before in zip(states, [None, *states], strict=False)
               if state != before]  # fmt: skip
    assert changes == ["running", "waiting", "queued"]
    assert states.count("waiting") >= 119


def test_a_lease_that_heartbeats_name_lives_beyond_its_task_s_time_limit(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    # Fetching inputs and delivering results take their own time.
    api.join("n1")
    api.submit({**ECHO, "timeout_s": 1})
    ref = api.take("n1")
    for _ in range(20):
        tick(mesh, clock, 30)
        api.node("n1", "POST", "/nodes/heartbeat", {"node_id": "n1", "leases": [ref]})
    assert api.result("n1", ref).json["state"] == "succeeded"
    assert api.task(ref["task_id"])["attempts"] == 1


def test_a_refused_result_says_that_its_cut_off_attempt_is_over(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    ref = running(api)
    api.rae("POST", f"/tasks/{ref['task_id']}/cancel", {})
    api.rae("POST", f"/tasks/{ref['task_id']}/requeue", {})
    assert api.task(ref["task_id"])["state"] == "waiting"
    other = {**ref, "lease_id": "another-lease"}
    assert api.result("n1", other).json["rc"] == "stale_lease"
    assert api.task(ref["task_id"])["state"] == "waiting"
    assert api.result("n1", ref).json["rc"] == "stale_lease"
    assert api.task(ref["task_id"])["state"] == "queued"
    assert mesh.fences == {}


def test_a_refused_result_of_a_copied_spool_leaves_the_first_machine_s_fence(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    ref = running(api)
    move(api, mesh, clock)
    assert api.result("n1", ref).json["rc"] == "stale_lease"
    assert list(mesh.fences) == [ref["lease_id"]]
    waits_for_the_first_machine(api, mesh, clock, ref["task_id"])


def test_a_refused_result_without_a_lease_ends_the_fence_of_a_client_s_only_attempt(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    secret = api.enrol("plain", "bearer")
    task_id = api.submit(ECHO)[0]["task_id"]
    headers = bearer(api, secret)
    outcome = {"task_id": task_id, "status": "succeeded"}
    for over in ("queued", "waiting"):
        until(
            lambda: api.client.get("/tasks/poll", headers=headers).json.get("task"),
            "the first machine gets the task",
        )
        api.rae("POST", f"/tasks/{task_id}/cancel", {})
        api.rae("POST", f"/tasks/{task_id}/requeue", {})
        assert api.task(task_id)["state"] == "waiting"
        answer = api.client.post("/tasks/result", json=outcome, headers=headers)
        assert answer.json["rc"] == "stale_lease"
        # The second time its first attempt may have sent this.
        assert api.task(task_id)["state"] == over


class Plain:
    """A bearer client that knows four calls; its tasks would be kept alive for an hour."""

    def __init__(self, api: Api, **extra: Any) -> None:
        self._api, self._extra = api, extra
        self._secret = api.enrol("plain", "bearer")
        self.task_id = api.submit({**ECHO, "timeout_s": 3600})[0]["task_id"]
        self.starts()
        self.leased = until(lambda: self.polls().get("task"), "the client gets the task")

    def starts(self, **more: Any) -> None:
        body = {"node_id": "plain", "capabilities": {}, **self._extra, **more}
        headers = {"Authorization": f"Bearer {self._secret}"}
        answer = self._api.client.post("/nodes/register", json=body, headers=headers)
        self._headers = {"Authorization": f"Bearer {answer.json['node_token']}"}

    def polls(self, query: str = "") -> dict[str, Any]:
        answer = self._api.client.get(f"/tasks/poll{query}", headers=self._headers)
        found: dict[str, Any] = answer.json
        return found

    def beats(self, mesh: Mesh, clock: ManualClock, seconds: int, **more: Any) -> str:
        """A heartbeat every second; the task's state after them."""
        for _ in range(seconds):
            tick(mesh, clock, 1)
            beat = {"node_id": "plain", **more}
            self._api.client.post("/nodes/heartbeat", json=beat, headers=self._headers)
        return str(self._api.task(self.task_id)["state"])


def test_a_client_of_one_slot_that_starts_again_keeps_its_dead_lease_for_one_ttl(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    plain = Plain(api)
    assert plain.beats(mesh, clock, 300) == "running"
    plain.starts()
    assert plain.beats(mesh, clock, 119) == "running"  # never closed early
    assert plain.beats(mesh, clock, 3) == "waiting"  # the one before may be alive: fenced
    assert plain.beats(mesh, clock, 122) == "queued"


def test_a_client_of_one_slot_that_asks_for_work_has_lost_its_lease(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    plain = Plain(api)
    assert plain.beats(mesh, clock, 300) == "running"
    assert plain.polls()["reasons"][0]["code"] == "slot_busy"
    assert plain.beats(mesh, clock, 119) == "running"
    assert plain.beats(mesh, clock, 3) == "waiting"


def test_a_client_that_has_its_lease_keeps_it(api: Api, mesh: Mesh, clock: ManualClock) -> None:
    plain = Plain(api, instance="the same")
    ref = {name: plain.leased[name] for name in ("task_id", "attempt", "lease_id")}
    plain.polls("?slots=")  # for orders alone
    plain.starts()  # with a new token
    assert plain.beats(mesh, clock, 300) == "running"
    plain.starts(instance="another", unfinished=[ref])
    assert plain.beats(mesh, clock, 300) == "running"
    plain.polls()
    assert plain.beats(mesh, clock, 1, leases=[ref]) == "running"
    assert plain.beats(mesh, clock, 300) == "running"


def test_a_client_of_two_slots_that_asks_for_work_has_its_other_lease(
    api: Api, mesh: Mesh, clock: ManualClock
) -> None:
    plain = Plain(api, slots=["cpu0", "cpu1"])
    plain.polls()
    plain.starts()
    assert plain.beats(mesh, clock, 300) == "running"
