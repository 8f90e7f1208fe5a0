"""Reboots, stops and kills: what comes back by itself, what moves, and what must not run."""

from __future__ import annotations

import itertools
import json
import os
import random
import time
from collections.abc import Iterator
from typing import Any

import pytest

from tests.e2e.site import NODES, Site
from tests.lab import Host

LONG = bool(os.environ.get("RAE_TEST_LONG"))
OUTAGE_S = 180 if LONG else 30
ORDERS = list(itertools.permutations(("control", *NODES)))
# All of them, or one by chance; the test's name says which.
REBOOTS = ORDERS if LONG else random.sample(ORDERS, 1)
# With the right secret, from a machine that is not the secret's.
REGISTER = """
import json, sys
from rae_protocol import models
from rae_protocol.errors import RemoteError
from rae_protocol.node_client import NodeClient
asked = json.load(sys.stdin)
client = NodeClient(asked["url"], "node1", asked["secret"])
try:
    client.register(models.RegisterRequest(node_id="node1"))
    print("registered")
except RemoteError as error:
    print(error.rc)
"""


@pytest.fixture(autouse=True)
def both_online(lent: Site) -> Iterator[None]:
    """Whatever one test has done, the next begins with both nodes."""
    lent.online(*NODES)
    yield


def sleeping(seconds: float, **more: Any) -> dict[str, Any]:
    """A task that can be found among a host's processes by its number."""
    return {"kind": "cli", "params": {"command": "sleep", "args": [f"{seconds:g}"]}, **more}


def alive(host: Host, seconds: float) -> bool:
    return (
        host.run(["pgrep", "--exact", "--full", f".*sleep {seconds:g}"], check=False).stdout != ""
    )


def agent(host: Host) -> str:
    return host.run(["systemctl", "show", "--property=MainPID", "--value", "rae-node"]).stdout


def other(name: str) -> str:
    (found,) = set(NODES) - {name}
    return found


@pytest.mark.parametrize("order", REBOOTS, ids="-".join)
def test_after_reboots_lent_nodes_work_again_and_others_do_not_run(
    lent: Site, order: tuple[str, ...]
) -> None:
    """node2 was lent and is its owner's again; node1 is lent. Contract: B4, B9."""
    lent.playbook("disable-node", "--limit", "node2")
    lent.online("node1")
    for name in order:
        lent.lab.reboot(name)
    lent.online("node1", timeout_s=150)
    (task,) = lent.submit(sleeping(0.5))
    assert lent.until(task, "succeeded")["node_id"] == "node1"
    for unit in ("rae-node", "rae-ollama", "rae-input"):
        state = lent.lab.hosts["node2"].run(["systemctl", "is-active", unit], check=False)
        assert state.stdout == "inactive\n"
    lent.playbook("enable-node", "--limit", "node2,rae_control")


def test_nodes_go_on_without_control_and_deliver_afterwards(lent: Site) -> None:
    """Contract: A8, A14."""
    before = {name: agent(lent.lab.hosts[name]) for name in NODES}
    seconds = OUTAGE_S * 0.7
    tasks = lent.submit(*(sleeping(seconds, lease_ttl_s=600, requirements={"nodes": [name]})
                          for name in NODES))  # fmt: skip
    for task in tasks:
        lent.until(task, "running")
    lent.control.run(["systemctl", "stop", "rae-control.socket", "rae-control.service"])
    end = time.monotonic() + OUTAGE_S
    try:
        said = lent.playbook("status").stdout
        assert "inactive" in said and "did not answer" in said
        assert said.count("control heard s ago") == len(NODES), "nodes are asked all the same"
        lent.eventually("the outage is over", lambda: time.monotonic() > end, OUTAGE_S + 5)
        assert not any(alive(lent.lab.hosts[name], seconds) for name in NODES)
    finally:
        lent.control.run(["systemctl", "start", "rae-control.socket", "rae-control.service"])
    for task in tasks:
        assert lent.until(task, "succeeded")["attempts"] == 1
    assert before == {name: agent(lent.lab.hosts[name]) for name in NODES}


def test_an_agent_that_is_stopped_says_goodbye_and_its_task_moves(lent: Site) -> None:
    """Contract: A12."""
    (task,) = lent.submit(sleeping(1201))
    first = lent.until(task, "running")["node_id"]
    host = lent.lab.hosts[first]
    host.run(["systemctl", "stop", "rae-node"])
    assert lent.nodes() == {other(first): "online"}, "it is gone at once"
    assert not alive(host, 1201)

    def moved() -> bool:
        seen = lent.task(task)
        return (seen["state"], seen["node_id"]) == ("running", other(first))

    lent.eventually("the task runs elsewhere", moved)
    lent.raectl("cancel", task)
    host.run(["systemctl", "start", "rae-node"])


def test_a_task_dies_with_its_killed_agent_and_runs_again(lent: Site) -> None:
    """Contract: A5."""
    (task,) = lent.submit(sleeping(1202))
    first = lent.until(task, "running")["node_id"]
    host = lent.lab.hosts[first]
    lent.eventually("it sleeps", lambda: alive(host, 1202))
    host.run(["systemctl", "kill", "--signal=KILL", "rae-node"])
    lent.eventually("the task has died with it", lambda: not alive(host, 1202), 5)

    def again() -> bool:
        seen = lent.task(task)
        return (seen["state"], seen["attempts"]) == ("running", 2)

    lent.eventually("its second attempt runs", again, 180)
    one, two = lent.task(task)["history"]
    assert one["ended_at"] <= two["claimed_at"] and one["state"] != "succeeded"
    assert sum(alive(lent.lab.hosts[name], 1202) for name in NODES) == 1
    lent.raectl("cancel", task)


def test_a_node_s_secret_is_no_good_on_another_machine(lent: Site) -> None:
    node1, node2 = (lent.lab.hosts[name] for name in NODES)
    kept = node1.run(["systemd-creds", "decrypt", "--name=enrolment.json",
                      "/etc/rae-node/enrolment.json.cred", "-"]).stdout  # fmt: skip
    four, _ = lent.tailnet("control")
    asked = {"url": f"http://{four}:8080", "secret": json.loads(kept)["enrolment_secret"]}
    done = node2.run(["/opt/rae-node/current/bin/python", "-c", REGISTER], stdin=json.dumps(asked))
    assert done.stdout == "wrong_peer\n"
    assert lent.nodes() == dict.fromkeys(NODES, "online")
