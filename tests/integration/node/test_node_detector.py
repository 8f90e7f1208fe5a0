"""`rae-node detector`: the state of the proof, and the test that a person takes at the desk."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import yaml

from rae_node.config import files
from rae_node.config.layout import Layout
from tools.fake_logind import FakeLogind, session
from tools.recorded_input import in_a_thread, plug, send

KEY, MOVE, PUSH = (1, 42, 1), (2, 0, 1), (3, 0, 90)
STICK = {0: (0, -100, 100, 0, 0, 0)}


@dataclass
class Desk:
    """A seat with devices, and `rae-node` for its machine."""

    layout: Layout
    devices: Path
    logind: FakeLogind
    env: dict[str, str]

    def rae_node(self, *argv: str) -> subprocess.Popen[str]:
        command = [sys.executable, "-m", "rae_node", "detector", *argv, "--root"]
        return subprocess.Popen(
            [*command, str(self.layout.root)], env=self.env, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip

    def status(self) -> dict[str, Any]:
        out, _ = self.rae_node("status", "--json").communicate(timeout=30)
        found: dict[str, Any] = json.loads(out)
        return found


@pytest.fixture
def desk(tmp_path: Path) -> Iterator[Desk]:
    layout, devices = Layout(tmp_path / "opt"), tmp_path / "input"
    layout.create()
    devices.mkdir()
    body = files.dev_config("n1", "http://127.0.0.1:8080")
    body["input_socket"] = str(tmp_path / "s")
    layout.config_file.write_text(yaml.safe_dump(body))
    plug(devices, 0, "keyboard", name="Keys")
    plug(devices, 1, "pointer", name="Mouse")
    with FakeLogind(tmp_path) as logind, in_a_thread(tmp_path / "s", devices):
        logind.sessions["2"] = session("2")
        env = {**os.environ, "DBUS_SYSTEM_BUS_ADDRESS": logind.address}
        yield Desk(layout, devices, logind, env)


def take_test(desk: Desk, *, deaf: str = "") -> tuple[int, list[str]]:
    """Do what the test asks for, but for one step; its exit code and lines."""

    def lock(locked: bool) -> None:
        desk.logind.sessions["2"] = session("2", LockedHint=locked)
        desk.logind.tell()

    with desk.rae_node("test", "--timeout", "4s") as asked:
        said = []
        assert asked.stdout is not None
        for line in asked.stdout:
            said.append(line.strip())
            if deaf and line.startswith(deaf):
                continue
            if line.startswith("Press"):
                send(desk.devices / "event0", KEY)
            elif line.startswith("Move the mouse"):
                send(desk.devices / "event1", MOVE)
            elif line.startswith("Move a stick"):
                send(desk.devices / "event2", PUSH)
            elif line.startswith(("Lock", "Unlock")):
                lock(line.startswith("Lock"))
    return asked.returncode, said


def test_the_test_says_which_source_saw_what_and_stores_the_proof(desk: Desk) -> None:
    assert not desk.status()["seats"][0]["proven"]
    plug(desk.devices, 2, "gamepad", name="Pad", absolutes=STICK)
    code, said = take_test(desk)
    text = "\n".join(said)
    assert code == 0, text
    assert text.count("seen by rae-input after") == 3
    assert text.count("seen by logind after") == 2
    assert said[-1] == "Proof stored: input on seat0 is seen (Keys, Mouse)."
    proven = {"seat": "seat0", "user": "anna", "proven": True, "how": "test", "why": "", "next": ""}
    assert desk.status() == {"blind": "", "seats": [proven]}


def test_devices_that_are_not_there_and_locks_that_are_not_reported_are_skipped(
    desk: Desk,
) -> None:
    code, said = take_test(desk, deaf="Lock")
    assert code == 0
    assert "skipped: no gamepad is connected to seat0" in said
    assert any("this desktop does not report it" in line for line in said)


def test_a_key_that_is_not_seen_leaves_no_proof(desk: Desk) -> None:
    code, said = take_test(desk, deaf="Press")
    assert code == 1
    assert "NOT seen within 4 s" in said
    assert said[-1].startswith("No proof: a key or a movement was not seen")
    assert not desk.status()["seats"][0]["proven"]


def test_the_status_says_what_completes_the_proof_and_what_is_connected(desk: Desk) -> None:
    out, _ = desk.rae_node("status").communicate(timeout=30)
    assert "seat0: a desktop there counts as in use for ever" in out
    assert "next: log in or unlock once at that desk, or run `sudo rae-node detector test`" in out
    assert "seat0: keyboard 'Keys'" in out
    assert desk.status()["seats"][0]["user"] == "anna"
    desk.logind.sessions.clear()
    assert desk.status()["seats"][0]["user"] == ""
    desk.logind.seats = {}
    assert desk.status()["seats"] == []


def test_without_a_detector_the_status_says_so_and_the_test_does_not_begin(
    desk: Desk,
) -> None:
    body = yaml.safe_load(desk.layout.config_file.read_text())
    desk.layout.config_file.write_text(yaml.safe_dump({**body, "input_socket": "/nowhere/s"}))
    found = desk.status()
    assert "systemctl status rae-input" in found["blind"] and not found["seats"][0]["proven"]
    asked = desk.rae_node("test")
    assert "systemctl status rae-input" in asked.communicate(timeout=30)[1]
    assert asked.returncode == 1
