"""The lab itself: it boots, is reached, and leaves nothing."""

from __future__ import annotations

import contextlib
import os
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

from tests.lab import Host, Lab, LabError
from tests.lab.lab import CHECKOUT, STATE, hold
from tools.processes import is_alive

REACH = "import socket, sys; socket.create_connection((sys.argv[1], 22), 10)"


def left_on_this_machine() -> set[str]:
    """Links, mounts, cgroups of every tree, nft tables, and the processes of guests."""
    nft = subprocess.run(["nft", "list", "tables"], capture_output=True, text=True, check=True)
    found = set(nft.stdout.splitlines())
    found |= {f"link {link.name}" for link in Path("/sys/class/net").iterdir()}
    found |= {
        line.split(" ", 4)[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()
    }
    found |= {path for path, _, _ in os.walk("/sys/fs/cgroup")}
    found |= {f"{path}" for path in STATE.iterdir() if path.suffix != ".lock"}
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):  # it has ended
            words = (
                f"{process} {(process / 'cmdline').read_text()} {(process / 'cgroup').read_text()}"
            )
            if "raelab" in words and is_alive(int(process.name)):
                found.add(words)
    return found


def left_of(number: int) -> set[str]:
    """What is there of a lab that has ended."""
    lock = hold(number)
    if lock < 0:  # somebody else has taken the number, after looking for himself
        return set()
    try:
        return of_lab(number, left_on_this_machine())
    finally:
        os.close(lock)


def of_lab(number: int, things: set[str]) -> set[str]:
    """Those of one lab; somebody else's may come and go meanwhile."""
    names = rf"raelab{number}\b|{STATE}/{number}\b"
    return {thing for thing in things if re.search(names, thing)}


def test_a_host_boots_without_a_failed_unit_and_is_reached_by_ssh(host: Host) -> None:
    assert host.failed == ()
    assert host.run(["cat", "/proc/1/comm"]).stdout == "systemd\n"
    assert host.ssh(["hostname"]).stdout == "node1\n"
    host.put("/run/lab/file", "what it says", mode=0o640)
    assert host.ssh(["stat", "-c", "%a:%U", "/run/lab/file"]).stdout == "640:root\n"
    host.copy(Path(__file__).parent, "/run/lab/tests")
    assert host.run(["tail", "-1", "/run/lab/tests/standin.py"]).stdout == "main()\n"
    assert "Server listening" in host.unit_log("ssh.service")


def test_a_command_that_fails_says_what_it_said(host: Host) -> None:
    with pytest.raises(LabError, match=r"`ls /nowhere` on node1 ended with 2: .*No such file"):
        host.run(["ls", "/nowhere"])


def test_two_hosts_of_a_second_lab_reach_each_other_and_leave_nothing(lab: Lab) -> None:
    before = left_on_this_machine()
    with Lab() as second:
        assert second.number != lab.number
        one, two = second.boot("one", "two")
        one.run(["python3", "-c", REACH, two.address])
        assert two.ssh(["hostname"]).stdout == "two\n"
        number = second.number
        assert of_lab(number, left_on_this_machine()), "the search finds nothing, whatever is there"
    assert left_of(number) == set()
    new = left_on_this_machine() - before
    assert not {thing for thing in new if thing.startswith("table")}


def test_what_a_killed_run_leaves_is_removed_by_the_next(lab: Lab, host: Host) -> None:
    command = [sys.executable, "-m", "tests.lab", "keep", "orphan"]
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        said = next(line for line in owner.stdout if line.startswith("inventory: "))
        owner.send_signal(signal.SIGKILL)
    number = int(Path(said.split()[1]).parts[-3])
    left = of_lab(number, left_on_this_machine())
    for program in ("systemd-nspawn", "/server"):
        assert any(program in thing for thing in left), f"{program} died with its owner"
    with Lab():
        pass
    assert left_of(number) == set()
    assert host.run(["true"]).returncode == 0, "a lab whose owner lives was removed"


def test_the_command_line_makes_a_lab_that_stays_until_down(lab: Lab) -> None:
    def lab_says(*words: str) -> str:
        command = [sys.executable, "-m", "tests.lab", *words]
        done = subprocess.run(
            command, cwd=CHECKOUT, capture_output=True, text=True, timeout=180, check=True
        )
        return done.stdout

    said = lab_says("up", "control", "alone", "outsider")
    try:
        assert "the lab is up" in said
        number = int(said.split(".")[2])
        assert lab_says("shell", "alone", "hostname") == "alone\n"
        assert lab_says("key").startswith("tskey-auth-")
        file = lab_says("inventory").strip()
        assert f"inventory: {file}" in said
        inventory = yaml.safe_load(Path(file).read_text())["all"]
        groups = {name: list(group["hosts"]) for name, group in inventory["children"].items()}
        assert groups == {
            "rae_control": ["control"], "rae_nodes": ["alone"], "rae_outside": ["outsider"],
            "lab_other": []
        }  # fmt: skip
        node = inventory["children"]["rae_nodes"]["hosts"]["alone"]
        assert "lab_auth_key" not in inventory["children"]["rae_outside"]["hosts"]["outsider"]
        ssh = ["ssh", "-i", node["ansible_ssh_private_key_file"]]
        ssh += shlex.split(node["ansible_ssh_common_args"])
        ssh += [f"{node['ansible_user']}@{node['ansible_host']}"]
        python = f"{node['ansible_python_interpreter']} -c 'import apt; print(apt.__name__)'"
        reached = subprocess.run([*ssh, python], capture_output=True, text=True, check=True)
        assert reached.stdout == "apt\n"
        files = ("lab_tailscale_dir", "lab_ollama_archive", "lab_model_file")
        assert all(Path(inventory["vars"][name]).exists() for name in files)
    finally:
        said = lab_says("down")
    assert f"lab {number}: gone" in said
    assert left_of(number) == set()


def test_who_is_interrupted_while_hosts_boot_leaves_nothing() -> None:
    command = [sys.executable, "-m", "tests.lab", "up", "first", "second"]
    with subprocess.Popen(command, cwd=CHECKOUT, stdout=subprocess.PIPE, text=True) as starting:
        assert starting.stdout is not None
        said = next(line for line in starting.stdout if "up in" in line)
        starting.send_signal(signal.SIGTERM)
    assert starting.returncode == 128 + signal.SIGTERM
    assert left_of(int(said.split(".")[2])) == set()
