"""A queued task says in plain words why it does not run."""

from __future__ import annotations

from rae_control.core.matching import NodeFacts
from rae_control.core.why import NodeNow, pause_after, why_nothing, why_queued, why_waiting

CLI = {"runners": ["cli"]}


def node(
    name: str = "n1", state: str = "online", who: str = "open", free: tuple[str, ...] = ("cpu0",)
) -> NodeNow:
    return NodeNow(NodeFacts(name), state, who, free)


def test_no_node_is_online() -> None:
    assert why_queued(CLI, [], 0) == ["No node is online."]


def test_no_node_fits_and_what_they_lack() -> None:
    told = why_queued({**CLI, "tags": ["studio"]}, [node(), node("n2")], 0)
    assert told[0] == "None of the 2 online node(s) fits:"
    assert "studio (2 of them)" in told[1]


def test_fitting_nodes_are_away_draining_or_busy() -> None:
    nodes = [node("a", who="owner"), node("b", state="draining"), node("c", free=())]
    told = " ".join(why_queued(CLI, nodes, 0))
    assert "a fits, but its owner is there" in told
    assert "b fits, but it is draining" in told
    assert "c fits, but it offers no free slot of that kind" in told


def test_others_are_before_it() -> None:
    assert why_queued(CLI, [node()], 7)[0].startswith("7 task(s)")


def test_a_free_node_starts_the_task_only_while_control_leases_tasks() -> None:
    assert why_queued(CLI, [node()], 0) == [
        "Node n1 fits and is free: the task starts at its next poll."
    ]
    assert why_queued(CLI, [node()], 0, leases=False) == ["Node n1 fits and is free."]


def test_a_node_that_is_hindered_says_by_what() -> None:
    gpu = {**CLI, "gpu_count": 1, "vram_gb": 12}
    facts = NodeFacts("g", slots=("gpu0",), gpus=1, vram_mb=16384)
    nodes = [
        NodeNow(NodeFacts("a"), "online", "owner", ("cpu0",), ["session", "input"]),
        NodeNow(NodeFacts("b"), "cordoned", "open", ("cpu0",), note="3 infrastructure failures"),
        NodeNow(NodeFacts("c"), "online", "open", ("cpu0",), polls=False),
    ]
    assert why_queued(CLI, nodes, 0) == [
        "Node a fits, but its owner is there (session, input).",
        "Node b fits, but it is cordoned: 3 infrastructure failures.",
        "Node c fits, but it does not ask for work at this moment.",
    ]
    full = NodeNow(facts, "online", "open", ("gpu0",), vram_free_mb=6144)
    told = why_queued(gpu, [full], 0)
    assert told == ["Node g fits, but only 6.0 of the 11.4 GB of VRAM that it needs are free now."]


def test_a_node_whose_trust_is_not_confirmed_is_named() -> None:
    """Contract: A10."""
    one = NodeNow(NodeFacts("n1"), "online", "open", ("cpu0",), claims_trust=True)
    told = why_queued({**CLI, "trusted": True}, [one], 0)
    assert told[1] == "it needs a trusted node (1 of them)"
    assert told[2] == "Node n1 calls itself trusted, but was not enrolled with --trusted."


def test_a_node_that_is_gone_and_would_fit_is_named() -> None:
    told = why_queued(CLI, [node("a", state="offline"), node("b", state="enrolled")], 0)
    assert told == ["No node is online.", "Node a would fit, but it is offline."]


def test_what_a_waiting_task_waits_for() -> None:
    told = why_waiting(["a (running)", "b (queued)"], 12.4, "n1", "failure 1 of 3: E_EXIT")
    assert told == [
        "It waits for a (running), b (queued).",
        "It waits 12 s more, a pause after failure 1 of 3: E_EXIT.",
        "It waits until its earlier attempt on n1 is surely dead.",
    ]
    assert "not_before" in why_waiting([], 5, None, None)[0]
    assert why_waiting([], None, None, None) == ["It is about to be queued."]


def test_what_a_pause_is_for() -> None:
    assert pause_after("submitted", 0, 3, 0) is None
    assert pause_after("E_EXIT", 1, 3, 0) == "failure 1 of 3: E_EXIT"
    assert pause_after("yield_owner", 0, 3, 4) == "4 interruptions in a row, the last: yield_owner"


def test_why_a_poll_gets_nothing() -> None:
    facts = NodeFacts("n1", slots=("cpu0",))
    assert why_nothing({}, facts, ["cpu0"])[0] == "queue_empty"
    assert why_nothing({"l": CLI}, facts, ["cpu0"])[0] == "taken"
    assert why_nothing({"l": CLI}, facts, [])[0] == "no_free_slot"
    code, sentence = why_nothing({"l": {**CLI, "vram_gb": 24, "gpu_count": 1}}, facts, ["cpu0"])
    assert code == "no_match"
    assert "GPU" in sentence
