"""The agent's second way to end a task: /run/rae-task/kill.sock."""

from __future__ import annotations

import pytest

from tests.integration.lab.harness import CROWD
from tests.integration.lab.node import AGENT_USER, KILL, Task, as_user, relay
from tests.lab import Host
from tests.until import until


def ask(host: Host, words: str) -> str:
    return host.run(as_user(AGENT_USER, relay(KILL)), stdin=words).stdout


def test_it_kills_the_unit_that_the_agent_names(host: Host) -> None:
    with Task(host) as other, Task(host) as task:
        other.tell("")
        task.tell(CROWD)
        until(lambda: task.processes() == 21, "the crowd is there")
        host.run(["systemctl", "kill", "--signal=SIGSTOP", task.unit])
        assert ask(host, f"{task.unit}\n") == "ok\n"
        task.wait_gone()
        assert other.alive(), "another task was killed, too"
        assert ask(host, f"{task.unit}\n") == f"{task.unit} does not run\n"


@pytest.mark.parametrize(
    "words",
    [
        "rae-node.service\n", "sshd.service\n", "rae-task-kill@0.service\n", "../x\n",
        "rae-task@/../../init.scope\n", "rae-task@x.service/../rae-node.service\n", "{unit}",
        "{unit}\n{unit}\n", " {unit}\n", "{unit}\0\n", "\n", "", "x" * 10_000_000,
    ],
    ids=lambda words: repr(words[:40]),
)  # fmt: skip
def test_it_kills_nothing_else(host: Host, words: str) -> None:
    with Task(host) as task:
        task.tell("")
        answer = ask(host, words.replace("{unit}", task.unit))
        assert answer.startswith("Only tasks can be killed here; send the name of one")
        assert task.alive()


def test_who_connects_and_says_nothing_is_hung_up_on(host: Host) -> None:
    with Task(host, KILL) as silent:
        assert silent.reads() == ""
