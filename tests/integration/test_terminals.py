"""Every verb of the three programs: its output into a closed pipe, a full disk, an old terminal."""

from __future__ import annotations

import argparse
import json
import os
import pty
import subprocess
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import pytest

from rae_control.cli.rae_control import build_parser as control_parser
from rae_control.cli.raectl import build_parser as raectl_parser
from rae_node.cli import build_parser as node_parser
from rae_protocol.terminal import CLOSED_PIPE
from tools.devmesh import DevMesh

NAME = "zażółć\u202e€"
ALLOW_LIST = f"- path: /bin/{NAME}\n  args: [['{NAME}']]\n"
TASK, LOGGED = "seen", "logged"

# Words for each verb. What needs another machine, or does not end by itself, shows its help.
VERBS: Mapping[str, Mapping[str, str]] = {
    "raectl": {
        "submit": "-- true {name}",
        "tasks": "", "task": "{task}", "why": "{task}", "log": "{logged}", "result": "{task}",
        "artifacts": "{task} -o {folder}/{name}", "cancel": "{queued} --reason {name}",
        "requeue": "{queued} --reason {name}",
        "nodes list": "--all", "nodes enrol": "other --trusted",
        "nodes drain": "other --reason {name}", "nodes resume": "other",
        "nodes revoke": "other --reason {name}", "nodes wait": "n1", "self-test": "n1",
        "tokens list": "",
        "tokens add": "t{number} --role read", "tokens revoke": "t{number}",
        "allowlist show": "{list}", "allowlist check": "{list} -- {name} {name}",
    },
    "rae-node": {
        "run": "--help", "pause": "1h", "resume": "", "status": "", "why": "", "history": "",
        "doctor": "", "dry-run": "", "report": "", "detector": "--help", "allows": "-- true",
        "probe": "", "check-config": "{list}", "help": "owner",
    },
    "rae-control": {
        "serve": "--help", "doctor": "--data {data} --port 1", "check": "--data {data}",
        "backup": "--data {data} {folder}/b{number}.tar", "chore": "--data {data} check --now",
        "worker": "--help", "check-config": "{settings}",
        "restore": "--data {folder}/r{number} {folder}/good.tar",
    },
}  # fmt: skip
MODULES = {
    "raectl": "rae_control.cli.raectl",
    "rae-node": "rae_node",
    "rae-control": "rae_control.cli.rae_control",
}
NOT_LOCATED = {"check-config", "help"}
WALK = [(program, verb) for program, verbs in VERBS.items() for verb in verbs]


@dataclass
class Desk:
    """A mesh, and files for each verb to work on."""

    mesh: DevMesh
    folder: Path
    number: int = 0

    def command(self, program: str, verb: str) -> list[str]:
        """A call of the verb that has something to print."""
        admin = self.mesh.admin
        self.number += 1
        queued = f"queued-{self.number}"
        if program == "raectl":
            known = {"kind": "cli", "params": {"command": "true"}, "requirements": {"nodes": ["x"]}}
            admin.submit([{**known, "task_id": queued}])
            if verb == "requeue":
                admin.cancel(queued)
            admin.enrol("other")
            if verb == "tokens revoke":
                admin.add_token(f"t{self.number}", "read")
        words = VERBS[program][verb].format(
            name=NAME, task=TASK, logged=LOGGED, queued=queued, number=self.number,
            list=self.folder / "list.yaml", settings=self.folder / f"{NAME}.yaml",
            data=self.mesh.data, folder=self.folder,
        )  # fmt: skip
        where = []
        if program == "rae-node" and verb not in NOT_LOCATED:
            where = ["--data", str(self.mesh.data), "--node-id", "n1"]
        return [sys.executable, "-m", MODULES[program], *verb.split(), *where, *words.split()]

    @property
    def environment(self) -> dict[str, str]:
        """What a person's shell has, and the credentials."""
        buffered = {k: v for k, v in os.environ.items() if k != "PYTHONUNBUFFERED"}
        known = {k: v for k, v in buffered.items() if not k.startswith("RAE_")}
        return {**known, "RAE_CREDENTIALS": str(self.mesh.data / "credentials.json")}


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Desk]:
    folder = tmp_path_factory.mktemp("desk")
    (folder / "list.yaml").write_text(ALLOW_LIST, encoding="utf-8")
    (folder / f"{NAME}.yaml").write_text("max_lanes: 5\n")
    with DevMesh(("n1",)) as mesh:
        task = {
            "kind": "cli", "params": {"command": "sha256sum", "args": [NAME]},
            "inputs": {NAME: {"sha256": mesh.rae.upload_blob(b"x")}},
        }  # fmt: skip
        stored = {"artifacts": [{"name": NAME, "type": "text/plain"}]}
        mesh.rae.submit([{**task, "task_id": LOGGED}, {**task, **stored, "task_id": TASK}])
        assert mesh.rae.wait(TASK, 60).error is None
        assert mesh.rae.wait(LOGGED, 60).error is None
        backup = [
            sys.executable,
            "-m",
            "rae_control.cli.rae_control",
            "backup",
            "--data",
            str(mesh.data),
        ]
        subprocess.run([*backup, str(folder / "good.tar")], check=True, capture_output=True)
        yield Desk(mesh, folder)


def verbs_of(parser: argparse.ArgumentParser, before: str = "") -> Iterator[str]:
    """The verbs of a command line, with the group that they are in."""
    groups = [one for one in parser._actions if isinstance(one, argparse._SubParsersAction)]
    if not groups:
        yield before.strip()
    for group in groups:
        for name, inner in group.choices.items():
            yield from verbs_of(inner, f"{before} {name}")


def test_no_verb_is_missing_in_this_walk() -> None:
    assert set(VERBS["raectl"]) == set(verbs_of(raectl_parser()))
    assert set(VERBS["rae-node"]) == set(verbs_of(node_parser()))
    assert set(VERBS["rae-control"]) == set(verbs_of(control_parser()))


@pytest.mark.parametrize(("program", "verb"), WALK)
def test_a_closed_pipe_ends_quietly_with_the_code_of_sigpipe(
    desk: Desk, program: str, verb: str
) -> None:
    read, write = os.pipe()
    os.close(read)
    done = subprocess.run(
        desk.command(program, verb), env=desk.environment, stdout=write, timeout=60, check=False,
        stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    os.close(write)
    assert done.returncode == CLOSED_PIPE, done.stderr
    assert done.stderr == ""


@pytest.mark.parametrize(("program", "verb"), WALK)
def test_a_full_disk_is_one_sentence(desk: Desk, program: str, verb: str) -> None:
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            desk.command(program, verb), env=desk.environment, stdout=full, timeout=60,
            stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert done.returncode == 1
    why = "the output cannot be written: the disk is full; write it elsewhere"
    assert done.stderr == f"{program}: {why}\n"


@pytest.mark.parametrize("encoding", ["latin-1", "ascii"])
@pytest.mark.parametrize(("program", "verb"), WALK)
def test_an_old_terminal_gets_escapes_for_what_it_lacks(
    desk: Desk, program: str, verb: str, encoding: str
) -> None:
    code, shown = on_a_terminal(
        desk.command(program, verb), {**desk.environment, "PYTHONIOENCODING": encoding}
    )
    text = shown.decode(encoding)
    assert code in ({0, 1} if program != "raectl" else {0}), text
    assert "Traceback" not in text
    assert all(sign.isprintable() or sign in "\r\n\t" for sign in text)


@pytest.mark.parametrize("program", MODULES)
def test_an_error_that_cannot_be_written_keeps_its_code(desk: Desk, program: str) -> None:
    command = [sys.executable, "-m", MODULES[program], "check-config", "/none"]
    command = command if program != "raectl" else [*command[:3], "task", "none"]
    with Path("/dev/full").open("wb") as full:
        done = subprocess.run(
            command, env=desk.environment, stdout=full, stderr=full, timeout=60, check=False
        )
        wrong = subprocess.run(
            [*command[:3], "--none"], env=desk.environment, stderr=full, timeout=60, check=False
        )
    assert (done.returncode, wrong.returncode) == (1, 2)


@pytest.mark.parametrize("words", [["task", "{task}"], ["tasks"], ["result", "{task}"]])
def test_json_stays_json_on_an_old_terminal(desk: Desk, words: list[str]) -> None:
    command = [sys.executable, "-m", "rae_control.cli.raectl", "--json", *words]
    command = [word.format(task=TASK) for word in command]
    _, shown = on_a_terminal(command, {**desk.environment, "PYTHONIOENCODING": "ascii"})
    assert json.loads(shown.decode("ascii"))


def test_a_log_is_raw_in_a_file_and_escaped_on_a_terminal(desk: Desk) -> None:
    log = [sys.executable, "-m", "rae_control.cli.raectl", "log", LOGGED]
    raw = subprocess.run(log, env=desk.environment, capture_output=True, timeout=60, check=True)
    assert "\u202e".encode() in raw.stdout
    _, shown = on_a_terminal(log, desk.environment)
    assert "\u202e" not in shown.decode() and "\\u202e€" in shown.decode()


def on_a_terminal(command: list[str], environment: dict[str, str]) -> tuple[int, bytes]:
    """The exit code, and what a terminal gets of both outputs."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(command, env=environment, stdout=theirs, stderr=theirs) as process:
        os.close(theirs)
        found = b""
        try:
            while piece := os.read(ours, 65536):
                found += piece
        except OSError:  # EIO: the other end is closed
            pass
        os.close(ours)
    return process.returncode, found
