"""What roles find on a host: packages without a way out, two IP versions, tun, reboots."""

from __future__ import annotations

import pytest

from tests.integration.lab.harness import REACH
from tests.lab import Host, Lab, LabError


def test_apt_installs_what_roles_need_without_a_network(pair: tuple[Host, Host]) -> None:
    host, _ = pair
    assert host.run(["which", "redis-server"], check=False).returncode != 0
    host.run(["apt-get", "update"])
    host.run(["apt-get", "install", "--yes", "redis-server", "python3-venv", "acl"], timeout_s=120)
    assert host.run(["redis-cli", "ping"]).stdout == "PONG\n"
    host.run(["python3", "-m", "venv", "/run/venv"])
    assert host.run(["/run/venv/bin/pip", "--version"]).stdout.startswith("pip ")


def test_hosts_reach_each_other_by_both_ip_versions_and_have_tun(pair: tuple[Host, Host]) -> None:
    here, there = pair
    for address in (there.address, there.address6):
        here.run(["python3", "-c", REACH, address])
    here.run(["ip", "tuntap", "add", "probe", "mode", "tun"])
    here.run(["ip", "link", "delete", "probe"])


def test_a_reboot_keeps_files_and_starts_all_else_anew(lab: Lab, pair: tuple[Host, Host]) -> None:
    host, _ = pair
    host.put("/root/kept", "kept")
    host.put("/run/lost", "lost")
    boot = host.run(["cat", "/etc/machine-id", "/run/lost"]).stdout
    before = host.leader
    assert lab.reboot("left").failed == ()
    assert host.leader != before
    assert boot == host.run(["cat", "/etc/machine-id"]).stdout + "lost"
    assert host.run(["cat", "/root/kept"]).stdout == "kept"
    assert host.run(["ls", "/run/lost"], check=False).returncode != 0
    assert host.ssh(["hostname"]).stdout == "left\n"


def test_a_host_that_was_stopped_is_down_until_it_is_started(
    lab: Lab, pair: tuple[Host, Host]
) -> None:
    _, host = pair
    host.put("/root/kept", "kept")
    lab.stop("right")
    with pytest.raises(LabError, match="right is down; `lab"):
        host.run(["true"])
    lab.start("right")
    assert host.ssh(["cat", "/root/kept"]).stdout == "kept"
