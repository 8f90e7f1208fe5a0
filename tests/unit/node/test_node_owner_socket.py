"""No other user takes the owner's `pause` away; where it cannot be used, the node is closed."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from rae_node.cli import main, parse_duration
from rae_node.config.layout import Layout, socket_path
from rae_node.errors import NodeError
from rae_node.guard.sources.pause import PauseSource
from rae_node.owner.socket import LocalSocket, ask
from rae_node.telemetry.log import EventLog
from rae_protocol.clock import SystemClock
from tests.unit.node.fakes import Rig, SetClock
from tests.until import until

MakeRig = Callable[..., Rig]
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


def test_a_socket_that_listens_no_more_is_noticed_and_opened_again(
    tmp_path: Path, quiet_log: EventLog
) -> None:
    path = tmp_path / "s"
    door = LocalSocket(path, {}, frozenset(), quiet_log)
    try:
        door.start()
        door.keep_open()
        door._socket.shutdown(socket.SHUT_RDWR)
        with pytest.raises(NodeError, match="does not serve"):
            door.keep_open()
        door.keep_open()
        assert ask(path, {"verb": "ping"}) == {}
    finally:
        door.close()


def test_a_thread_that_answers_no_client_is_noticed(tmp_path: Path, quiet_log: EventLog) -> None:
    free = threading.Event()

    class Stuck(LocalSocket):
        def _admit(self, uid: int) -> bool:
            return free.wait(10) and super()._admit(uid)

    door = Stuck(tmp_path / "s", {}, frozenset(), quiet_log)
    try:
        door.start()
        with pytest.raises(NodeError, match="does not serve"):
            door.keep_open()
        free.set()
        door.keep_open()
    finally:
        door.close()


def test_no_failure_of_one_connection_ends_the_door(tmp_path: Path, quiet_log: EventLog) -> None:
    failures = iter([OSError(24, "too many files"), MemoryError(), RuntimeError("no threads")])

    class Failing(LocalSocket):
        def _admit(self, uid: int) -> bool:
            for failure in failures:
                raise failure
            return super()._admit(uid)

    door = Failing(tmp_path / "s", {}, frozenset(), quiet_log)
    try:
        door.start()
        for _ in range(3):
            with pytest.raises(NodeError):
                ask(tmp_path / "s", {"verb": "ping"})
        assert ask(tmp_path / "s", {"verb": "ping"}) == {}
    finally:
        door.close()


def test_root_and_the_agent_find_room_when_many_users_have_taken_all(
    tmp_path: Path, quiet_log: EventLog
) -> None:
    door = LocalSocket(tmp_path / "s", {}, frozenset(), quiet_log)
    try:
        rooms = [door._admit(uid) for uid in range(100_000, 100_100)]
        assert not all(rooms)
        assert door._admit(0) and door._admit(os.getuid())
        for uid in [*range(100_000, 100_100), 0, os.getuid()]:
            door._leave(uid)
        assert not door._served  # nothing is kept of users that have gone
    finally:
        door.close()


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


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_pauses_too_and_holds_nothing_up(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "pause")
    source = PauseSource(tmp_path / "pause.json", SetClock(), tmp_path / "pause")
    assert source.read().present and source.is_set()


def test_a_task_ends_within_two_seconds_of_a_touched_file(
    make_rig: MakeRig, layout: Layout
) -> None:
    rig = make_rig()
    rig.control.give("cli", params={"command": "sleep", "args": ["60"]})
    until(lambda: any(run.alive() for run in rig.agent.runs()), "it runs")
    layout.pause_file.touch()
    assert until(lambda: rig.control.of("yield"), "the hand-back", 2.0)[0][1] == "paused"


@pytest.mark.parametrize(("word", "longest"), [([], float("inf")), (["30m"], 1800.0)])
def test_pause_writes_the_file_where_the_socket_does_not_answer(
    layout: Layout, capsys: pytest.CaptureFixture[str], word: list[str], longest: float
) -> None:
    assert main(["pause", "--root", str(layout.root), *word]) == 0
    said = capsys.readouterr()
    assert said.out.startswith("Paused ") and "until" in said.out
    assert str(layout.pause_file) in said.err
    source = PauseSource(layout.run / "pause.json", SystemClock(), layout.pause_file)
    assert longest - 60 <= source.left_s() <= longest or source.left_s() == longest
    assert main(["resume", "--root", str(layout.root)]) == 0
    assert source.left_s() == 0


@pytest.mark.parametrize(
    ("word", "said"),
    [("30", "for 30 s, until "), ("2d", "for 2 d, until "), ("90m", "for 90 min, until ")],
)
def test_a_pause_says_how_long_it_is_and_its_last_day(
    layout: Layout, capsys: pytest.CaptureFixture[str], word: str, said: str
) -> None:
    before = datetime.now() + timedelta(seconds=parse_duration(word))
    assert main(["pause", "--root", str(layout.root), word]) == 0
    after = datetime.now() + timedelta(seconds=parse_duration(word))
    out = capsys.readouterr().out
    assert out.startswith(f"Paused {said}")
    assert f"{before:%a %d %b}" in out or f"{after:%a %d %b}" in out
    assert main(["resume", "--root", str(layout.root)]) == 0


def test_pause_without_agent_or_node_says_what_else_pauses(
    layout: Layout, capsys: pytest.CaptureFixture[str]
) -> None:
    layout.pause_file.parent.rmdir()
    assert main(["pause", "--root", str(layout.root)]) == 1
    assert "systemctl start rae-node" in capsys.readouterr().err
    layout.pause_file.parent.write_text("")
    assert main(["pause", "--root", str(layout.root)]) == 1
    assert f"type `touch {layout.pause_file}`" in capsys.readouterr().err


def test_pauses_of_others_never_shorten_the_owners_however_many_come_at_once(
    tmp_path: Path,
) -> None:
    by_hand = tmp_path / "pause"
    source = PauseSource(tmp_path / "pause.json", SystemClock(), by_hand)
    over = threading.Event()

    def stranger() -> None:
        while not over.is_set():
            source.set(0.01, only_longer=True)

    threads = [threading.Thread(target=stranger) for _ in range(8)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(50):
            source.set(None)
            assert source.until() == 0.0
            by_hand.touch()
            assert source.until() == 0.0 and by_hand.exists()
            source.clear()
    finally:
        over.set()
        for thread in threads:
            thread.join()
