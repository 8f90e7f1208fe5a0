"""The input detector in its unit on a booted host, which has no input device.

That it opens devices there, and can only read them, is tested in the virtual machine.
"""

from __future__ import annotations

import json
from typing import Any

import pytest

from tests.integration.lab import node
from tests.lab import Host, Lab
from tests.until import until

SOCKET = "/run/rae-input/input.sock"
# Its answer, as JSON; the process that asks is named on the command line.
ASK = f"""
import socket
with socket.socket(socket.AF_UNIX, socket.SOCK_SEQPACKET) as detector:
    detector.settimeout(5)
    detector.connect({SOCKET!r})
    print(detector.recv(65536).decode())
"""
# What a detector that was taken over finds: from inside its namespaces, as its user.
INSIDE = """
import json, os, socket, subprocess
found = {"run": sorted(os.listdir("/run")), "links": [name for _, name in socket.if_nameindex()]}
found["writable"] = []
for folder, folders, files in os.walk("/"):
    folders[:] = [name for name in folders if (folder, name) not in {("/", "proc"), ("/", "sys")}]
    for path in [folder, *(os.path.join(folder, name) for name in files)]:
        if os.path.islink(path) or path.startswith("/dev/"):
            continue
        if os.access(path, os.W_OK):
            found["writable"].append(path)
found["writable"].sort()
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def host(lab: Lab) -> Host:
    """A host whose input detector runs, and nothing else of a node."""
    (host,) = lab.boot("detector")
    node.install(host)
    node.install_release(host, "protocol", "node")
    host.run(["systemctl", "start", "rae-input"])
    return host


def status(host: Host) -> dict[str, str]:
    """What the kernel says of the detector's process."""
    pid = node.settings(host, "rae-input.service")["MainPID"]
    lines = host.run(["cat", f"/proc/{pid}/status"]).stdout.splitlines()
    return dict(line.split(":\t", 1) for line in lines)


def group(host: Host, name: str) -> str:
    return host.run(["getent", "group", name]).stdout.split(":")[2]


def ask(host: Host, *properties: str) -> Any:
    """What the detector answers to a unit with these properties; None where it may not ask."""
    words = [f"--property={each}" for each in properties]
    done = host.run(["systemd-run", "--quiet", "--pipe", "--wait", *words, "python3", "-c", ASK],
                    check=False)  # fmt: skip
    if "PermissionError" in done.stderr:
        return None
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_it_is_ready_and_says_that_it_sees_nothing_wrong_where_there_is_no_device(
    host: Host,
) -> None:
    said = node.settings(host, "rae-input.service")
    assert (said["SubState"], said["Type"], said["WatchdogUSec"]) == ("running", "notify", "1min")
    assert said["ControlGroup"] == "/rae.slice/rae-input.service"
    assert (said["MemoryMax"], said["TasksMax"], said["LimitCORE"]) == (str(32 << 20), "4", "1")
    answer = ask(host)
    assert (answer["blind"], answer["devices"], answer["seats"]) == ("", [], {})


def test_the_agents_unit_asks_it_and_neither_its_user_nor_another_does(host: Host) -> None:
    unit = node.settings(host, "rae-node.service")
    assert set(unit["SupplementaryGroups"].split()) == {"rae-task", "rae-input"}
    assert ask(host, "User=rae-node", "SupplementaryGroups=rae-input")
    for user in ("rae-node", "rae-task", "rae-ollama", "messagebus"):
        assert ask(host, f"User={user}") is None


def test_it_is_in_no_group_but_its_own_and_the_devices_and_has_no_privilege(host: Host) -> None:
    seen = status(host)
    groups = {*seen["Gid"].split(), *seen["Groups"].split()}
    assert groups == {group(host, "rae-input"), group(host, "input")}
    assert {seen[f"Cap{kind}"].strip("0") for kind in ("Eff", "Prm", "Bnd", "Amb")} == {""}
    assert (seen["NoNewPrivs"], seen["Seccomp"]) == ("1", "2")
    assert [host.run(["getent", "group", name]).stdout.strip().split(":")[3]
            for name in ("input", "rae-input")] == ["", ""]  # fmt: skip


def test_whoever_takes_it_over_finds_no_network_no_socket_and_no_place_to_write(
    host: Host,
) -> None:
    pid = node.settings(host, "rae-input.service")["MainPID"]
    inside = ["nsenter", f"--target={pid}", "--mount", "--net", "--ipc"]
    done = host.run([*inside, *node.as_user("rae-input", ["python3", "-c", INSIDE])])
    found = json.loads(done.stdout)
    assert found == {
        "run": ["rae-input", "systemd"], "links": ["lo"],
        "writable": ["/run/rae-input", SOCKET, "/run/systemd/notify"],
    }  # fmt: skip
    said = node.settings(host, "rae-input.service")
    assert said["DevicePolicy"] == "closed"
    assert "char-input r" in said["DeviceAllow"]
    assert not any(rule.endswith(("w", "m")) for rule in said["DeviceAllow"].split("; "))


def test_it_comes_back_a_second_after_its_end_and_its_stop_leaves_nothing(host: Host) -> None:
    before = node.settings(host, "rae-input.service")["MainPID"]
    host.run(["systemctl", "kill", "--signal=SIGKILL", "rae-input"])

    def again() -> bool:
        said = node.settings(host, "rae-input.service")
        return said["SubState"] == "running" and said["MainPID"] != before

    until(again, "it runs again", every_s=0.2)
    assert ask(host)["blind"] == ""
    host.run(["systemctl", "stop", "rae-input"])
    assert host.run(["test", "-e", "/run/rae-input"], check=False).returncode == 1
    host.run(["systemctl", "start", "rae-input"])


def test_starting_an_agent_that_is_not_lent_starts_no_detector(host: Host) -> None:
    """Contract: B9."""
    host.run(["systemctl", "stop", "rae-input"])
    host.run(["systemctl", "start", "rae-node"])
    states = {name: node.settings(host, f"{name}.service") for name in ("rae-node", "rae-input")}
    assert {name: said["ActiveState"] for name, said in states.items()} == {
        "rae-node": "inactive", "rae-input": "inactive"
    }  # fmt: skip
    assert states["rae-input"]["UnitFileState"] == "disabled"
    host.run(["systemctl", "start", "rae-input"])
