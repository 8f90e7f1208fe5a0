"""A queued task says in plain words why it does not run."""

from __future__ import annotations

from rae_control.core.matching import NodeFacts
from rae_control.core.why import NodeNow, why_nothing, why_queued, why_waiting

CLI = {"runners": ["cli"]}


def node(
    name: str = "n1", state: str = "online", who: str = "open", free: tuple[str, ...] = ("cpu0",)
) -> NodeNow:
    return NodeNow(NodeFacts(name), state, who, free)


def test_no_node_is_online() -> None:
    assert why_queued(CLI, [], 0, True) == ["No node is online."]


def test_redis_is_away() -> None:
    assert "Redis" in why_queued(CLI, [node()], 0, False)[0]


def test_no_node_fits_and_what_they_lack() -> None:
    told = why_queued({**CLI, "tags": ["studio"]}, [node(), node("n2")], 0, True)
    assert told[0] == "None of the 2 online node(s) fits:"
    assert "studio (2 of them lack it)" in told[1]


def test_fitting_nodes_are_away_draining_or_busy() -> None:
    nodes = [node("a", who="owner"), node("b", state="draining"), node("c", free=())]
    told = " ".join(why_queued(CLI, nodes, 0, True))
    assert "a fits, but its owner is there" in told
    assert "b fits, but it is draining" in told
    assert "c fits, but all its slots of that kind are busy" in told


def test_others_are_before_it() -> None:
    assert why_queued(CLI, [node()], 7, True)[0].startswith("7 task(s)")


def test_what_a_waiting_task_waits_for() -> None:
    told = why_waiting(["a", "b"], 12.4, True)
    assert told[0] == "It waits for a, b."
    assert "12 s more" in told[1]
    assert "surely dead" in told[2]


def test_why_a_poll_gets_nothing() -> None:
    facts = NodeFacts("n1", slots=("cpu0",))
    assert why_nothing({}, facts, ["cpu0"])[0] == "queue_empty"
    assert why_nothing({"l": CLI}, facts, ["cpu0"])[0] == "taken"
    assert why_nothing({"l": CLI}, facts, [])[0] == "no_free_slot"
    code, sentence = why_nothing({"l": {**CLI, "vram_gb": 24, "gpu_count": 1}}, facts, ["cpu0"])
    assert code == "no_match"
    assert "GPU" in sentence
