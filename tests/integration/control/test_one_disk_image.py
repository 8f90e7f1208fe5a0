"""Two machines from one disk image take a node from each other; one that starts anew does not."""

from __future__ import annotations

import logging
from typing import Any

import pytest

from rae_control.core.takeovers import WINDOW_S
from rae_control.mesh.mesh import Mesh
from tests.integration.control.harness import ECHO, Api, ManualClock

HERE, THERE = "100.64.0.7", "100.64.0.8"


class Twins:
    """Agents with one node_id and one machine id."""

    def __init__(self, api: Api) -> None:
        self._api = api
        self._sessions: dict[str, tuple[str, str]] = {}
        api.enrol("n1")

    def registers(self, instance: str, address: str = HERE) -> None:
        self._api.client.environ_base["REMOTE_ADDR"] = address
        assert self._api.register("n1", instance=instance).status_code == 200
        self._sessions[instance] = (address, self._api.tokens["n1"])

    def calls(self, instance: str, signed_at: float | None = None) -> dict[str, Any]:
        """A heartbeat of this agent, in its own session."""
        address, token = self._sessions[instance]
        self._api.client.environ_base["REMOTE_ADDR"] = address
        now, self._api.tokens["n1"] = self._api.tokens["n1"], token
        try:
            body = {"node_id": "n1"}
            answer = self._api.node("n1", "POST", "/nodes/heartbeat", body, ts=signed_at)
        finally:
            self._api.tokens["n1"] = now
        found: dict[str, Any] = answer.json
        return found

    def state(self) -> tuple[str, str]:
        found = self._api.rae("GET", "/nodes", who="root").json["nodes"][0]
        return found["state"], found.get("reason", "")


@pytest.fixture
def twins(api: Api) -> Twins:
    return Twins(api)


def test_agents_that_are_started_again_after_each_takeover_cordon_their_node(
    twins: Twins, caplog: pytest.LogCaptureFixture
) -> None:
    twins.registers("a1", HERE)
    twins.registers("b1", THERE)
    assert twins.calls("a1")["rc"] == "superseded"
    twins.registers("a2", HERE)
    assert twins.state()[0] == "online"
    with caplog.at_level(logging.WARNING):
        told = twins.calls("b1")
    state, reason = twins.state()
    assert state == "cordoned"
    for words in (HERE, THERE, "rm /etc/machine-id && systemd-machine-id-setup", "of its own"):
        assert words in reason
        assert words in told["message"]
    assert told["rc"] == "superseded"
    logged = [record for record in caplog.records if record.getMessage() == "node_cordoned"]
    assert len(logged) == 1


def test_instances_that_register_in_turn_cordon_their_node(twins: Twins) -> None:
    for instance, address in (("a", HERE), ("b", THERE), ("a", HERE)):
        twins.registers(instance, address)
        assert twins.state()[0] == "online"
    twins.registers("b", THERE)
    state, reason = twins.state()
    assert (state, HERE in reason, THERE in reason) == ("cordoned", True, True)


def test_an_agent_that_starts_again_and_again_is_one_agent(twins: Twins) -> None:
    for number in range(20):
        twins.registers(f"a{number}")
        assert twins.calls(f"a{number}")["commands"] == []
    assert twins.state()[0] == "online"


def test_an_agent_that_registers_again_itself_is_one_agent(twins: Twins) -> None:
    twins.registers("a1")
    for _ in range(5):
        twins.registers("a1")
        twins.registers("a1")
    twins.registers("a2")
    twins.registers("a2")
    assert twins.state()[0] == "online"


def test_one_late_call_of_an_ended_agent_is_no_second_agent(twins: Twins) -> None:
    twins.registers("a1")
    twins.registers("a2")
    for _ in range(5):
        assert twins.calls("a1")["rc"] == "superseded"
    for number in range(3, 6):
        twins.registers(f"a{number}")
    assert twins.state()[0] == "online"


def test_calls_that_were_on_their_way_when_an_agent_was_killed_are_no_second_agent(
    twins: Twins, clock: ManualClock
) -> None:
    twins.registers("a1")
    for number in range(1, 5):
        sent = clock.wall()
        clock.advance(3)  # it is killed, and its successor registers before the call arrives
        twins.registers(f"a{number + 1}")
        assert twins.calls(f"a{number}", sent)["rc"] == "superseded"
    assert twins.state()[0] == "online"


def test_what_is_long_ago_is_no_evidence(twins: Twins, clock: ManualClock) -> None:
    twins.registers("a1")
    twins.registers("b1")
    twins.calls("a1")
    clock.advance(WINDOW_S + 1)
    twins.registers("a2")
    twins.calls("b1")
    assert twins.state()[0] == "online"


def test_after_a_resume_it_takes_new_evidence(twins: Twins, api: Api) -> None:
    for instance in ("a", "b", "a", "b"):
        twins.registers(instance)
    assert api.rae("POST", "/nodes/n1/resume", {}, who="root").json["state"] == "online"
    twins.registers("a")
    assert twins.state()[0] == "online"


def test_a_takeover_by_a_suspect_is_fenced_and_charges_the_task_nothing(
    twins: Twins, api: Api, mesh: Mesh
) -> None:
    twins.registers("a1")
    twins.registers("b1")
    twins.calls("a1")
    api.submit(ECHO)
    ref = api.take("n1")
    twins.registers("a2")
    task = api.task(ref["task_id"])
    assert (task["state"], task["interruptions"]) == ("waiting", 0)
    assert task["reason"] == "machine_id_shared"
    assert list(mesh.fences) == [ref["lease_id"]]  # b1 may still run it
