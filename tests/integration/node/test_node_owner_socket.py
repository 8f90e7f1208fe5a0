"""No other user takes the owner's `pause` away; where it cannot be used, the node is closed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from rae_node.config.layout import Layout, socket_path
from rae_node.owner.socket import ask
from tests.integration.node.harness import MakeRig
from tests.until import until

ROOT = os.getuid() == 0
# Connections of another user as fast as it can, until its input ends: silent ones, half a request,
# long answers that it does not read. Without root it is the agent's own user, with fewer of them.
CROWD = """
import os, select, socket, sys, time
path, uid, most = sys.argv[1], int(sys.argv[2]), int(sys.argv[3])
if os.getuid() == 0:
    os.setgroups([]), os.setgid(uid), os.setuid(uid)
held, count, end = [], 0, time.monotonic() + 5
while not select.select([0], [], [], 0)[0]:
    one = socket.socket(socket.AF_UNIX)
    one.setblocking(False)
    try:
        one.connect(path)
        held.append(one)
        count += 1
        one.send([b"", b'{"verb": "sta', b'{"verb": "history", "count": 1000}\\n'][count % 3])
    except OSError:
        time.sleep(0.001)
    for old in held[:-most]:
        old.close()
    held = held[-most:]
    if end and (count == most or time.monotonic() > end):
        end = 0
        print("crowded", flush=True)
"""


@pytest.fixture
def layout() -> Iterator[Layout]:
    """In a folder that every user reaches, as an installed node's."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        found = Layout(Path(folder, "node"))
        found.create()
        yield found


@pytest.fixture
def crowd(layout: Layout) -> Iterator[Callable[[], None]]:
    """Strangers at the socket, a thousand connections each."""
    made: list[subprocess.Popen[str]] = []

    def come() -> None:
        path, most = str(socket_path(layout.root)), "1000" if ROOT else "20"
        for uid in (54321, 54322) if ROOT else (os.getuid(),):
            words = [sys.executable, "-c", CROWD, path, str(uid), most]
            made.append(
                subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
            )
        for one in made:
            assert one.stdout is not None and one.stdout.readline() == "crowded\n"

    yield come
    for one in made:
        one.communicate(timeout=20)


def test_a_pause_works_while_strangers_crowd_at_the_socket(
    make_rig: MakeRig, layout: Layout, crowd: Callable[[], None]
) -> None:
    rig = make_rig()
    until(lambda: rig.agent.guard.decision.safe, "the node is free")
    crowd()
    began = time.monotonic()
    ask(socket_path(layout.root), {"verb": "pause"})
    assert time.monotonic() - began < 2.0
    assert "paused" in rig.agent.guard.decision.reasons
    began = time.monotonic()
    ask(socket_path(layout.root), {"verb": "resume"})
    layout.pause_file.touch()
    until(lambda: "paused" in rig.agent.guard.decision.reasons, "the file counts", 2.0)


def test_a_socket_whose_file_is_gone_or_anothers_opens_again(
    make_rig: MakeRig, layout: Layout
) -> None:
    rig, path = make_rig(), socket_path(layout.root)
    until(lambda: rig.agent.guard.decision.safe, "the node is free")
    for replace in (path.unlink, lambda: impostor(path), lambda: path.chmod(0o600)):
        replace()
        until(lambda: path.exists() and path.stat().st_mode & 0o777 == 0o666, "it is open again")
        assert ask(path, {"verb": "status"})["pid"] == os.getpid()


def impostor(path: Path) -> None:
    path.unlink()
    with socket.socket(socket.AF_UNIX) as other:
        other.bind(str(path))


def test_without_its_socket_the_node_is_closed_until_it_serves_again(
    make_rig: MakeRig, layout: Layout
) -> None:
    rig, path = make_rig(), socket_path(layout.root)
    until(lambda: rig.agent.guard.decision.safe, "the node is free")
    path.unlink()
    (path / "in the way").mkdir(parents=True)
    decision = until(lambda: not rig.agent.guard.decision.safe and rig.agent.guard.decision, "shut")
    assert decision.reasons == ("blind_owner_socket",)
    (cause,) = rig.agent.guard.causes
    assert "does not serve, so that `rae-node pause` may not work" in cause.holder.who
    (path / "in the way").rmdir()
    path.rmdir()
    until(lambda: rig.agent.guard.decision.safe, "it works again")
    assert ask(path, {"verb": "status"})["pid"] == os.getpid()


@pytest.mark.parametrize("content", ["", "until I am back\n", '{"until": null}', "\0" * 10_000])
def test_a_file_of_the_owner_pauses_whatever_it_holds_and_resume_removes_it(
    make_rig: MakeRig, layout: Layout, content: str
) -> None:
    rig = make_rig()
    until(lambda: rig.agent.guard.decision.safe, "the node is free")
    layout.pause_file.write_text(content)
    until(lambda: rig.agent.guard.decision.reasons == ("paused",), "it is paused")
    ask(socket_path(layout.root), {"verb": "resume"})
    assert rig.agent.guard.decision.safe and not layout.pause_file.exists()


def test_a_task_ends_within_two_seconds_of_a_touched_file(
    make_rig: MakeRig, layout: Layout
) -> None:
    rig = make_rig()
    rig.control.give("cli", params={"command": "sleep", "args": ["60"]})
    until(lambda: any(run.alive() for run in rig.agent.runs()), "it runs")
    layout.pause_file.touch()
    assert until(lambda: rig.control.of("yield"), "the hand-back", 2.0)[0][1] == "paused"
