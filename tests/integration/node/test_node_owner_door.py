"""The owner's door stays open, whatever other users of the machine do at it."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import pytest

from rae_node.config.layout import socket_path
from rae_node.owner import verbs
from rae_node.owner.socket import ask
from tests.integration.node.harness import MakeRig
from tests.until import until

STRANGER = 54321  # a uid without a name, which may not resume
# A server with files for forty connections, which asks itself after they were all held.
FEW_FILES = """
import resource, socket, sys, time
from pathlib import Path
from rae_node.owner.socket import LocalSocket, ask
from rae_node.telemetry.log import EventLog
resource.setrlimit(resource.RLIMIT_NOFILE, (40, 40))
path = Path(sys.argv[1])
door = LocalSocket(path, {"status": lambda _, __: {"fine": True}}, frozenset(), EventLog("n1"))
door.start()
held = []
try:
    while True:
        one = socket.socket(socket.AF_UNIX)
        held.append(one)
        one.connect(str(path))
except OSError:
    pass
time.sleep(0.3)  # the server meets its limit, too
for one in held:
    one.close()
print(ask(path, {"verb": "status"}))
"""


def test_a_door_that_was_out_of_files_for_a_while_opens_again(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", FEW_FILES, tmp_path / "s"], capture_output=True, text=True,
        timeout=60, check=False,
    )  # fmt: skip
    assert done.stdout == "{'fine': True}\n", done.stderr


def test_a_change_is_reported_at_once_and_a_flood_of_changes_once_a_second(
    make_rig: MakeRig,
) -> None:
    rig = make_rig(heartbeat_interval_sec=300.0)
    until(lambda: rig.control.of("register"), "it is registered")
    until(lambda: rig.agent.guard.decision.safe, "it may work")
    guard, clock = rig.agent.guard, rig.agent.context.clock
    time.sleep(1.1)  # the first heartbeat is long ago
    told, began = len(rig.control.of("heartbeat")), time.monotonic()
    rig.owner.present = True
    guard.look_now(clock.boot(), 10)
    until(lambda: len(rig.control.of("heartbeat")) == told + 1, "a heartbeat reports it")
    assert time.monotonic() - began < 0.5
    for _ in range(50):
        rig.owner.present = not rig.owner.present
        guard.look_now(clock.boot(), 10)
    rig.owner.present = False
    guard.look_now(clock.boot(), 10)
    until(
        lambda: rig.control.of("heartbeat")[-1].availability.value == "open",
        "a heartbeat reports the last change",
    )
    spent = time.monotonic() - began
    assert len(rig.control.of("heartbeat")) - told <= 2 + spent


@pytest.mark.parametrize("held_s", [None, 3600.0])
def test_a_user_who_may_not_resume_only_makes_a_pause_longer(
    make_rig: MakeRig, held_s: float | None
) -> None:
    rig = make_rig()
    agent, source = rig.agent, rig.agent.context.pause
    set_to = source.set(held_s)
    agent.guard.look_now(0, 10)
    answer = verbs.pause(agent, 1.0, STRANGER)
    for until_s in (answer["until"] or 0, source.until()):  # between two clocks
        assert until_s == pytest.approx(set_to or 0, abs=1.0)
    assert not agent.guard.decision.safe
    longer = verbs.pause(agent, 7200.0, STRANGER)["until"]
    assert longer == set_to if held_s is None else longer > (set_to or 0)
    assert verbs.pause(agent, 60.0, 0)["until"] < agent.context.clock.wall() + 61
    assert verbs.pause(agent, None, STRANGER)["until"] is None and source.until() == 0


def test_without_a_pause_every_user_may_begin_one(make_rig: MakeRig) -> None:
    rig = make_rig()
    until(lambda: rig.agent.guard.decision.safe, "the node is free")
    assert verbs.pause(rig.agent, 60.0, STRANGER)["until"] > rig.agent.context.clock.wall()
    assert not rig.agent.guard.decision.safe
    assert ask(socket_path(rig.agent.context.layout.root), {"verb": "status"})["reasons"] == [
        "paused"
    ]
