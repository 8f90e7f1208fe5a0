"""raectl as it is typed: what it prints, and its exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.messages import faults
from tools.devmesh import DevMesh

Done = subprocess.CompletedProcess[str]


class Raectl:
    """Runs raectl with a mesh's credentials."""

    def __init__(self, mesh: DevMesh) -> None:
        self._environment = {
            **{k: v for k, v in os.environ.items() if not k.startswith("RAE_")},
            "RAE_CREDENTIALS": str(mesh.data / "credentials.json"),
        }

    def __call__(self, *words: str, stdin: str = "", **environment: str) -> Done:
        return subprocess.run(
            [sys.executable, "-m", "rae_control.cli.raectl", *words],
            env={**self._environment, **environment}, input=stdin, capture_output=True, text=True,
            timeout=60, check=False,
        )  # fmt: skip

    def begun(self, *words: str) -> subprocess.Popen[str]:
        """A call that goes on."""
        return subprocess.Popen(
            [sys.executable, "-m", "rae_control.cli.raectl", *words], env=self._environment,
            text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def json(self, *words: str) -> Any:
        """The answer for programs of a call that succeeds."""
        done = self(*words, "--json")
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)


@pytest.fixture(scope="module")
def raectl(mesh: DevMesh) -> Raectl:
    return Raectl(mesh)


@pytest.fixture(scope="module")
def idle(control: DevMesh) -> Raectl:
    """Against a control without nodes: what is queued stays queued."""
    return Raectl(control)


def test_a_file_goes_in_and_its_hash_comes_out(raectl: Raectl, tmp_path: Path) -> None:
    (tmp_path / "in").write_text("hello\n")
    done = raectl(
        "submit", "--wait", "--task-id", "cli-hash", "--input", f"licence.txt={tmp_path / 'in'}",
        "--artifact", "out.txt:text/plain", "--", "sha256sum", "licence.txt",
    )  # fmt: skip
    assert (done.returncode, done.stderr) == (0, "raectl: submitted cli-hash\n")
    assert "succeeded" in done.stdout
    fetched = raectl("artifacts", "cli-hash", "-o", str(tmp_path / "new"))
    assert fetched.returncode == 0
    digest = "5891b5b522d5df086d0ff0b110fbd9d21bb4fc7163af34d08286a2e846f6be03"
    assert (tmp_path / "new" / "out.txt").read_text() == f"{digest}  licence.txt\n"
    assert raectl("log", "cli-hash", "-f").returncode == 0
    assert raectl("result", "cli-hash").returncode == 0
    assert "1 attempt, 0 failures, 0 interruptions" in raectl("task", "cli-hash").stdout
    none = raectl("log", "cli-hash", "--attempt", "99")
    assert (none.returncode, none.stdout) == (1, "")
    assert "cli-hash has 1 attempt, and none with the number 99" in none.stderr
    assert raectl("log", "cli-hash", "--attempt", "1").returncode == 0
    assert raectl.json("tasks", "--state", "succeeded")["tasks"]


def test_a_task_that_fails_is_exit_code_4(raectl: Raectl) -> None:
    command = ["submit", "--wait", "--task-id", "cli-denied", "--", "mkfs", "/dev/null"]
    done = raectl(*command)
    assert done.returncode == 4
    assert "E_DENY" in done.stdout
    assert raectl("result", "cli-denied").returncode == 4


def test_a_python_task_returns_its_value(raectl: Raectl) -> None:
    name = ["--task-id", "cli-python", "--python", "example", "--params", '{"name": "Ada"}']
    assert raectl("submit", "--wait", *name).returncode == 0
    assert json.loads(raectl("result", "cli-python").stdout)["greeting"] == "Hello, Ada!"


def test_nodes_are_listed_drained_and_resumed(raectl: Raectl) -> None:
    assert {node["node_id"] for node in raectl.json("nodes", "list")["nodes"]} == {"n1", "n2"}
    assert "draining" in raectl("nodes", "drain", "n2", "--reason", "repair").stdout
    assert "online" in raectl("nodes", "resume", "n2").stdout


def test_a_node_is_waited_for_and_does_a_self_test(raectl: Raectl) -> None:
    assert raectl.json("nodes", "wait", "n1")["state"] == "online"
    done = raectl("self-test", "n1", "--timeout", "30")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("self-test-n1-")
    assert "succeeded  on n1" in done.stdout
    (test,) = raectl.json("tasks", "--label", "purpose=SELF_TEST")["tasks"]
    assert (test["node_id"], test["attempts"]) == ("n1", 1)


def test_a_node_that_does_not_come_online_in_time_is_refused_with_its_state(idle: Raectl) -> None:
    assert idle("nodes", "enrol", "cli-away").returncode == 0
    assert idle("nodes", "wait", "cli-away", "--state", "enrolled").returncode == 0
    done = idle("nodes", "wait", "cli-away", "--timeout", "0.2")
    assert (done.returncode, done.stdout) == (1, "")
    assert "cli-away is enrolled and not online after 0.2 s" in done.stderr
    assert faults(done.stderr.removeprefix("raectl: ")) == []


def test_a_self_test_that_no_node_takes_is_cancelled_and_explained(idle: Raectl) -> None:
    assert idle("nodes", "enrol", "cli-away").returncode == 0
    done = idle("self-test", "cli-away", "--timeout", "0.2")
    assert (done.returncode, done.stdout) == (1, "")
    assert "cli-away did not finish self-test-cli-away-" in done.stderr
    assert "No node is online." in done.stderr
    assert faults(done.stderr.removeprefix("raectl: ")) == []
    (test,) = idle.json("tasks", "--label", "purpose=SELF_TEST")["tasks"]
    assert test["state"] == "cancelled"


def test_a_queued_task_is_explained_and_cancelled(idle: Raectl) -> None:
    assert idle("submit", "--task-id", "cli-wait", "--", "true").stdout == "cli-wait  queued\n"
    assert idle("why", "cli-wait").stdout.startswith("No node is online.\n")
    result = idle("result", "cli-wait")
    assert (result.returncode, result.stdout) == (1, "")
    assert "no result yet" in result.stderr
    both = idle("cancel", "cli-wait", "cli-nothing")
    assert (both.returncode, both.stdout) == (1, "cli-wait  cancelled\n")
    assert "cli-nothing" in both.stderr
    assert idle("requeue", "cli-wait").stdout == "cli-wait  queued\n"
    assert idle("cancel", "cli-wait").returncode == 0


@pytest.mark.parametrize("more", [[], ["--json"]])
def test_a_wait_that_is_cut_off_has_said_which_task_it_was(idle: Raectl, more: list[str]) -> None:
    with idle.begun("submit", "--wait", "--timeout", "20", *more, "--", "true") as waiting:
        assert waiting.stderr is not None
        said = waiting.stderr.readline()
        waiting.send_signal(signal.SIGINT)
        assert waiting.communicate(timeout=30) == ("", "")
    assert waiting.returncode == 130
    task_id = said.removeprefix("raectl: submitted ").strip()
    assert idle.json("task", task_id)["state"] == "queued"
    assert idle("cancel", task_id).returncode == 0


def test_bodies_come_from_a_file_or_stdin(idle: Raectl, tmp_path: Path) -> None:
    bodies = [{"kind": "later", "task_id": f"cli-body-{n}"} for n in range(3)]
    (tmp_path / "tasks.json").write_text(json.dumps({"tasks": bodies[:2]}))
    assert idle("submit", "--json-file", str(tmp_path / "tasks.json")).stdout.count("queued") == 2
    assert idle("submit", "--json-file", "-", stdin=json.dumps(bodies[2])).returncode == 0
    listed = idle.json("tasks", "--kind", "later", "--limit", "2", "--all")["tasks"]
    assert [task["task_id"] for task in listed] == ["cli-body-2", "cli-body-1", "cli-body-0"]
    page = idle("tasks", "--kind", "later", "--limit", "2").stdout
    assert "(more: --cursor " in page


def test_a_token_is_shown_once_and_ends_at_once(idle: Raectl, control: DevMesh) -> None:
    token = idle.json("tokens", "add", "cli-alice", "--role", "read")["tokens"][0]["token"]
    assert token not in idle("tokens", "list").stdout
    own = {"RAE_URL": control.url, "RAE_TOKEN": token}
    assert idle("tasks", **own).returncode == 0
    assert idle("submit", "--", "true", **own).returncode == 1
    idle("tokens", "revoke", "cli-alice")
    assert idle("tasks", **own).returncode == 1


def test_an_enrolment_shows_the_secret_again(idle: Raectl) -> None:
    first = idle.json("nodes", "enrol", "cli-node", "--bearer")
    assert (first["kind"], first["trusted"]) == ("bearer", False)
    assert first["enrolment_secret"] in idle("nodes", "enrol", "cli-node", "--bearer").stdout
    assert "cli-node" in idle("nodes", "list", "--all").stdout
    # Who enrols again for the secret alone must learn what that has changed.
    trusted = idle("nodes", "enrol", "cli-node", "--bearer", "--trusted")
    assert (trusted.returncode, trusted.stderr) == (0, "")
    again = idle("nodes", "enrol", "cli-node", "--bearer")
    assert "cli-node was enrolled before, and is not trusted from now on" in again.stderr
    assert idle("nodes", "enrol", "cli-other").stderr == ""
    assert "cli-node" not in idle("nodes", "list").stdout


@pytest.mark.parametrize(
    "words",
    [
        (),
        ("frobnicate",),
        ("submit",),
        ("submit", "--priority", "high", "--", "true"),
        ("submit", "--priority", "77", "--", "true"),
        ("submit", "--input", "x=/does/not/exist", "--", "cat", "x"),
        ("submit", "--input", "x", "--", "true"),
        ("submit", "--python", "example", "--params", "[1]"),
        ("submit", "--python", "example", "--params", '{"a": NaN}'),
        ("submit", "--python", "example", "--", "true"),
        ("submit", "--json-file", "/does/not/exist"),
        ("tokens", "add", "x", "--role", "root"),
        ("--credentials", "/does/not/exist", "tasks"),
    ],
)
def test_wrong_usage_is_exit_code_2_with_one_sentence(idle: Raectl, words: tuple[str, ...]) -> None:
    done = idle(*words)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.startswith("raectl: ")
    assert len(done.stderr.splitlines()) == 1
    assert faults(done.stderr.removeprefix("raectl: ")) == []


@pytest.mark.parametrize(
    ("words", "code", "way_out"),
    [
        (("submit", "--priority", "77", "--", "true"), 2, "priority: must be less than"),
        (("submit", "--require", "colour=red", "--", "true"), 2, "is not known; remove it"),
        (("submit", "--input", "x=task:t1", "--", "true"), 2, "write task:ID/NAME"),
        (("submit", "--json-file", "-"), 2, "stdin is not acceptable JSON"),
        (("submit", "--json-file", "/"), 2, "name a file instead of the folder"),
        (("--credentials", __file__, "tasks"), 2, "use one that `rae-control serve --dev` wrote"),
        (("task", "a b"), 1, "1 to 64 letters"),
        (("tasks", "--label", "x"), 1, "look it up in protocol.md"),
        (("requeue", "cli-nothing", "a b"), 1, "Check the id"),
        (("nodes", "enrol", "a b"), 1, "must match"),
        (("nodes", "drain", "cli-nothing"), 1, "raectl nodes list --all"),
        (("nodes", "wait", "cli-nothing"), 1, "raectl nodes list --all"),
        (("nodes", "wait", "n1", "--timeout", "0"), 2, "give the seconds to wait"),
        (("self-test", "cli-nothing"), 1, "raectl nodes list --all"),
        (("self-test", "n1", "--timeout", "-1"), 2, "give the seconds to wait"),
        (("tokens", "revoke", "cli-nothing"), 1, "raectl tokens list"),
        (("submit", "--wait", "--timeout", "0.1", "--", "true"), 1, "raectl why"),
    ],
)
def test_each_mistake_is_answered_with_the_way_out(
    idle: Raectl, words: tuple[str, ...], code: int, way_out: str
) -> None:
    done = idle(*words)
    assert (done.returncode, done.stdout) == (code, "")
    assert way_out in done.stderr
    for line in done.stderr.splitlines():
        if not line.startswith("raectl: submitted "):
            assert faults(line.removeprefix("raectl: ")) == []


def test_a_wrong_token_says_where_the_token_comes_from(idle: Raectl) -> None:
    assert "set RAE_TOKEN" in idle("tasks", RAE_TOKEN="wrong").stderr


def test_credentials_without_a_token_say_what_is_missing(idle: Raectl, tmp_path: Path) -> None:
    (tmp_path / "c.json").write_text('{"url": "http://127.0.0.1:9"}')
    said = idle("--credentials", str(tmp_path / "c.json"), "tasks").stderr
    assert "is no credentials.json ('admin_token' is missing)" in said


def test_a_url_with_a_path_says_what_to_change(idle: Raectl, control: DevMesh) -> None:
    found = json.loads((control.data / "credentials.json").read_text())
    done = idle("tasks", RAE_URL=f"{found['url']}/elsewhere", RAE_TOKEN=found["admin_token"])
    assert done.returncode == 1
    assert "take the path off the URL" in done.stderr


def test_an_argument_that_the_locale_cannot_read_says_so(idle: Raectl) -> None:
    plain = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"}
    done = idle("submit", "--", "cat", "\u00fc", **plain)
    assert done.returncode == 2
    assert "set LC_ALL=C.UTF-8" in done.stderr


def test_what_control_refuses_is_exit_code_1_with_the_way_out(idle: Raectl) -> None:
    done = idle("task", "cli-unknown")
    assert done.returncode == 1
    assert "Check the id" in done.stderr
    assert idle("nodes", "drain", "cli-unknown").returncode == 1
    assert idle("tasks", RAE_URL="", RAE_TOKEN="wrong").returncode == 1


def test_a_url_without_a_token_is_refused_before_anything_is_sent(idle: Raectl) -> None:
    done = idle("tasks", RAE_URL="http://127.0.0.1:9")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == (
        "raectl: RAE_URL is set and RAE_TOKEN is not; set both, or name a file with --credentials\n"
    )


def test_an_unreachable_control_is_exit_code_3(idle: Raectl, free_port: int) -> None:
    away = {"RAE_URL": f"http://127.0.0.1:{free_port}", "RAE_TOKEN": "x"}
    assert idle("nodes", "wait", "n1", "--timeout", "0.1", **away).returncode == 3
    done = idle("tasks", **away)
    assert done.returncode == 3
    assert "Check the URL" in done.stderr


def test_raectl_starts_without_the_servers_libraries() -> None:
    code = "import sys, rae_control.cli.raectl; print(*sorted(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not {"flask", "gevent", "redis", "rq", "apsw"} & set(done.stdout.split())
