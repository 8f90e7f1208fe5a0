"""No other user takes the owner's `pause` away; where it cannot be used, the node is closed."""

from __future__ import annotations

import os
import socket
import tempfile
import threading
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from pathlib import Path

import pytest

from rae_node.cli import main, parse_duration
from rae_node.config.layout import Layout
from rae_node.errors import NodeError
from rae_node.guard.sources.pause import PauseSource
from rae_node.owner.socket import LocalSocket, ask
from rae_node.telemetry.log import EventLog
from rae_protocol.clock import SystemClock
from tests.unit.node.harness import SetClock


@pytest.fixture
def layout() -> Iterator[Layout]:
    """In a folder that every user reaches, as an installed node's."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        found = Layout(Path(folder, "node"))
        found.create()
        yield found


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


@pytest.mark.parametrize("make", [os.mkfifo, os.mkdir, lambda path: path.symlink_to("/dev/zero")])
def test_what_is_no_file_pauses_too_and_holds_nothing_up(
    tmp_path: Path, make: Callable[[Path], None]
) -> None:
    make(tmp_path / "pause")
    source = PauseSource(tmp_path / "pause.json", SetClock(), tmp_path / "pause")
    assert source.read().present and source.is_set()


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
