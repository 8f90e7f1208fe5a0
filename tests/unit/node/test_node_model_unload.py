"""Models give their memory back: the agent asks rae-ollama-kill.socket once for each use."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

import pytest

from rae_node.package import DATA
from rae_node.runners.ollama_service import WAIT_S, ModelRunner
from rae_protocol.clock import SystemClock
from tests.unit.node.harness import Log


@pytest.fixture
def log() -> Log:
    return Log()


class Door:
    """Stands in for rae-ollama-kill.socket."""

    def __init__(self, path: Path) -> None:
        self.path, self.answer, self.received = path, b"ok\n", list[bytes]()
        self._socket = socket.socket(socket.AF_UNIX)
        self._socket.bind(str(path))
        self._socket.listen()
        self._thread = threading.Thread(target=self._serve)
        self._thread.start()

    def _serve(self) -> None:
        while True:
            agent, _ = self._socket.accept()
            with agent:
                received = agent.recv(64)
                if received == b"end":
                    return
                self.received.append(received)
                agent.sendall(self.answer)

    def close(self) -> None:
        with socket.socket(socket.AF_UNIX) as line:
            line.connect(str(self.path))
            line.sendall(b"end")
        self._thread.join()
        self._socket.close()


@pytest.fixture
def door(tmp_path: Path) -> Iterator[Door]:
    made = Door(tmp_path / "kill.sock")
    yield made
    made.close()


def test_a_model_is_unloaded_once_for_each_use(door: Door, log: Log) -> None:
    runner = ModelRunner(log.log, SystemClock(), "http://127.0.0.1:9", {0}, door.path)
    runner.free()  # an earlier agent's
    runner.free()
    assert door.received == [b"kill\n"]
    runner.begins()
    runner.free()
    assert len(door.received) == 2
    assert all(float(str(told["ms"])) >= 0 for told in log.events("model_runner_killed"))


def test_a_model_that_stays_is_logged_once_and_tried_again(door: Door, log: Log) -> None:
    runner = ModelRunner(log.log, SystemClock(), "http://127.0.0.1:9", {0}, door.path)
    door.answer = b"rae-ollama cannot be killed\n"
    runner.free()
    runner.free()
    (told,) = log.events("model_runner_not_killed")
    assert told["error"] == "rae-ollama cannot be killed"
    door.answer = b"ok\n"
    runner.free()
    assert len(door.received) == 3 and len(log.events("model_runner_killed")) == 1


@pytest.mark.parametrize("accepts", [True, False])
def test_a_kill_socket_that_says_nothing_holds_the_guard_for_a_second_at_most(
    tmp_path: Path, log: Log, accepts: bool
) -> None:
    path = tmp_path / "kill.sock"
    with ExitStack() as stack:
        silent = stack.enter_context(socket.socket(socket.AF_UNIX))
        silent.bind(str(path))
        silent.listen(8 if accepts else 0)
        if not accepts:  # what the backlog holds: the next one waits
            stack.enter_context(socket.socket(socket.AF_UNIX)).connect(str(path))
        runner = ModelRunner(log.log, SystemClock(), "http://127.0.0.1:9", {0}, path)
        began = time.monotonic()
        runner.free()
        assert time.monotonic() - began < WAIT_S + 0.3 <= 1.3
    (told,) = log.events("model_runner_not_killed")
    assert str(path) in str(told["error"])


def test_a_node_without_a_runner_says_nothing(tmp_path: Path, log: Log) -> None:
    ModelRunner(log.log, SystemClock(), "http://127.0.0.1:9", {0}, tmp_path / "none").free()
    log.log.flush()
    assert log.stream.getvalue() == ""


def test_the_killer_knows_one_word(tmp_path: Path) -> None:
    code = (DATA / "units" / "kill_ollama.py").read_text(encoding="utf-8")
    names: dict[str, object] = {"__name__": "kill_ollama"}
    exec(compile(code, "kill_ollama.py", "exec"), names)
    answer = names["answer"]
    assert callable(answer)
    for asked in (b"", b"kill", b"kill\n\n", b"kill rae-node.service\n"):
        assert "send `kill` and a newline" in answer(asked, str(tmp_path))
    assert not (tmp_path / "cgroup.kill").exists()
    assert answer(b"kill\n", str(tmp_path / "none")) == "ok"
    assert answer(b"kill\n", str(tmp_path)) == "ok"
    assert (tmp_path / "cgroup.kill").read_text() == "1"
