"""The machine stays awake while a task runs, and only then; and models give their memory back."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from io import StringIO
from pathlib import Path

import pytest

from rae_node.agent.sleep_inhibitor import Awake
from rae_node.config.layout import Layout
from rae_node.isolation.base import ProcessIsolation
from rae_node.package import DATA
from rae_node.runners.ollama_service import WAIT_S, ModelRunner
from rae_node.telemetry.log import EventLog
from rae_protocol.clock import SystemClock
from tests.unit.node.fakes import Rig
from tests.until import until


class Log:
    """An event log that a test can read."""

    def __init__(self) -> None:
        self.stream = StringIO()
        self.log = EventLog("n1", self.stream)

    def events(self, name: str) -> list[dict[str, object]]:
        self.log.flush()
        lines = [json.loads(line) for line in self.stream.getvalue().splitlines()]
        return [line["attrs"] for line in lines if line["event"] == name]


@pytest.fixture
def log() -> Log:
    return Log()


def holding(file: Path) -> tuple[str, ...]:
    """Stands in for systemd-inhibit: a file is there while it holds."""
    return ("sh", "-c", f"echo $$ >> {file}; cat; rm {file}")


def test_sleep_is_blocked_while_a_task_runs_and_only_then(tmp_path: Path, log: Log) -> None:
    """Contract: B5."""
    file = tmp_path / "held"
    awake = Awake(log.log, holding(file))
    for _ in range(2):
        awake.follow(1)
        until(lambda: file.exists() and file.read_text(), "it is held")
        held = file.read_text()
        awake.follow(2)
        assert file.read_text() == held
        awake.follow(0)
        until(lambda: not file.exists(), "it is let go")
        awake.follow(0)
    assert log.events("sleep_not_blocked") == []


def test_the_sleep_block_ends_with_an_agent_that_is_killed(tmp_path: Path) -> None:
    """Contract: B5."""
    file = tmp_path / "held"
    program = (
        "import sys, time\nfrom rae_node.agent.sleep_inhibitor import Awake\n"
        "from rae_node.telemetry.log import EventLog\n"
        f"Awake(EventLog('n1', sys.stderr), {holding(file)!r}).follow(1)\ntime.sleep(60)\n"
    )
    agent = subprocess.Popen([sys.executable, "-c", program])
    holder = int(until(lambda: file.exists() and file.read_text(), "it is held"))
    agent.send_signal(signal.SIGKILL)
    agent.wait()
    until(lambda: not file.exists(), "it is let go")
    with suppress(ChildProcessError):  # the tests' process inherits it, if it looks after orphans
        os.waitpid(holder, 0)


def test_the_weakest_isolation_keeps_the_machine_awake_too(
    make_rig: Callable[..., Rig], layout: Layout, tmp_path: Path
) -> None:
    """Contract: B5."""
    file = tmp_path / "held"
    rig = make_rig(isolation=ProcessIsolation(layout.root), sleep_block=holding(file))
    assert rig.agent.context.isolation.level == "process"
    rig.control.give("cli", params={"command": "sleep", "args": ["60"]})
    until(rig.running, "it runs")
    until(lambda: file.exists() and file.read_text(), "it is held")
    rig.owner.present = True
    rig.agent.guard.wake()
    until(lambda: not file.exists(), "it is let go")


@pytest.mark.parametrize(
    "command", [("sh", "-c", "echo 'Failed to inhibit: Access denied' >&2; exit 1"), ("/no/such",)]
)
def test_without_the_right_to_block_sleep_the_log_says_so_once(
    log: Log, command: tuple[str, ...]
) -> None:
    """Contract: B5."""
    awake = Awake(log.log, command)
    for _ in range(3):
        awake.follow(1)
        until(lambda: log.events("sleep_not_blocked"), "the log names it")
        awake.follow(0)
    (told,) = log.events("sleep_not_blocked")
    assert "denied" in str(told["error"]) or "/no/such" in str(told["error"])


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
