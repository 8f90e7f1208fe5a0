"""What stops a playbook: one message with what, why and how to fix it, and nothing changed."""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from tests.integration.lab.playbooks import Ran, Site
from tests.lab import Host
from tests.lab.image import PYTHON


@pytest.fixture
def more(site: Site, tmp_path: Path) -> Path:
    """A file for an inventory beside the site's, which has the last word."""
    return tmp_path / "more.yml"


def refused(site: Site, *words: str, options: tuple[str, ...] = ()) -> Ran:
    """Run site.yml; it must say these words, once a host, and change nothing."""
    before = site.files()
    ran = site.play("site", *options)
    assert ran.returncode != 0
    for said in words:
        assert said in ran.words, ran.text
    assert ran.changed == 0, ran.text
    assert "Traceback" not in ran.text
    after = site.files()
    assert {name: after[name] ^ before[name] for name in before} == {name: set() for name in before}
    return ran


def variables(**values: object) -> tuple[str, ...]:
    return ("--extra-vars", json.dumps(values))


@contextmanager
def undone(host: Host, *argv: str) -> Iterator[None]:
    """Run a command on the host when the test is over."""
    try:
        yield
    finally:
        host.run(argv)


@pytest.mark.parametrize(
    ("hosts", "count"),
    [
        ({}, 0),
        ({"rae_nodes": {"hosts": {"node1": {}}}}, 0),
        ({"rae_control": {"hosts": {"one": {}, "two": {}}}}, 2),
    ],
    ids=["empty", "no group", "two control hosts"],
)
def test_a_wrong_inventory_is_reported(
    site: Site, tmp_path: Path, hosts: dict[str, object], count: int
) -> None:
    file = tmp_path / "hosts.yml"
    file.write_text(yaml.safe_dump({"all": {"children": hosts}}))
    ran = site.play("site", inventory=file)
    assert ran.returncode != 0 and ran.changed == 0
    assert f"The inventory has {count} hosts in the group rae_control" in ran.words
    assert "Copy inventory/example to inventory/mesh" in ran.words


def test_a_missing_inventory_is_reported(site: Site, tmp_path: Path) -> None:
    ran = site.play("site", inventory=tmp_path / "mesh")
    assert ran.returncode != 0 and ran.changed == 0
    assert f"Unable to parse {tmp_path / 'mesh'} as an inventory source" in ran.words
    assert "Copy inventory/example to inventory/mesh" in ran.words


def test_a_wrong_vault_password_is_reported_in_ansible_s_own_words(
    site: Site, tmp_path: Path
) -> None:
    wrong = tmp_path / "password"
    wrong.write_text("another one\n")
    ran = site.play("site", password=wrong)
    assert ran.returncode != 0
    assert "TASK [" not in ran.text, "it stops before the first task"
    assert "Decryption failed (no vault secrets were found that could decrypt" in ran.words


def test_an_inventory_without_a_vault_is_reported(site: Site, tmp_path: Path) -> None:
    bare = tmp_path / "mesh"
    shutil.copytree(site.inventory, bare, ignore=shutil.ignore_patterns("vault.yml"))
    ran = site.play("site", inventory=bare)
    assert ran.returncode != 0 and ran.changed == 0
    assert "control: control_root_key is missing from the vault" in ran.words
    assert "`make vault` writes a vault with good ones" in ran.words


def test_a_host_that_does_not_answer_stops_the_run_before_any_is_changed(
    site: Site, more: Path
) -> None:
    absent = f"10.99.{site.lab.number}.250"
    more.write_text(yaml.safe_dump({"rae_nodes": {"hosts": {"node1": {"ansible_host": absent}}}}))
    ran = refused(
        site,
        f"node1 ({absent}) cannot be reached",
        f"check that `ssh root@{absent}` works.",
        options=("--inventory", str(more)),
    )
    assert "unreachable=0" in ran.text


def test_a_user_whom_sudo_asks_for_a_password_is_reported(site: Site, more: Path) -> None:
    node = site.hosts["node1"]
    node.run(["useradd", "--create-home", "--groups=sudo", "--password=*", "op"])
    node.run(["cp", "-r", "/root/.ssh", "/home/op/"])
    node.run(["chown", "-R", "op:", "/home/op/.ssh"])
    more.write_text(yaml.safe_dump({"rae_nodes": {"hosts": {"node1": {"ansible_user": "op"}}}}))
    refused(
        site,
        "node1 does not let op become root:",
        "sudo password",
        "Run the playbook again with --ask-become-pass",
        options=("--inventory", str(more)),
    )


def test_a_clock_that_is_off_is_reported_with_its_error(site: Site) -> None:
    node = site.hosts["node1"]
    node.run(["apt-get", "update", "--quiet"])
    node.run(["apt-get", "install", "--yes", "--quiet", "faketime"])
    late = '#!/bin/sh\nexec faketime -f -300s /usr/bin/python3 "$@"\n'
    node.put("/usr/local/bin/python3", late, mode=0o755)
    with undone(node, "rm", "/usr/local/bin/python3"):
        ran = refused(site, "behind this machine's", "timedatectl set-ntp true")
    told = re.search(r"node1's clock is (\d+) s behind", ran.words)
    # Of this machine's clock whole seconds are looked at, and a little later.
    assert told is not None and 299 <= int(told[1]) <= 305, ran.text


def test_a_full_disk_is_reported(site: Site) -> None:
    node = site.hosts["node1"]
    node.run(["mount", "-t", "tmpfs", "-o", "size=64M", "full", "/opt"])
    with undone(node, "umount", "/opt"):
        full = "node1 has 64 MiB free below /opt, /var or /etc, and an installation needs 512"
        refused(site, full,
                "Free some space on it (`df -h /opt /var /etc` shows where)")  # fmt: skip


def test_a_port_that_is_taken_is_reported_with_who_has_it(site: Site) -> None:
    control = site.hosts["control"]
    control.run(
        ["systemd-run", "--unit=taken", "--collect", "python3", "-m", "http.server", "8080"]
    )
    with undone(control, "systemctl", "stop", "taken"):
        control.run(["bash", "-c", "until ss -Hltn | grep -q :8080; do sleep 0.1; done"])
        refused(site, "control: port 8080 is taken by users:((\"python3\"",
                "Stop that program, let it listen on one other address only, or choose another "
                "mesh_control_port.")  # fmt: skip


def test_a_distribution_that_is_not_supported_is_reported(site: Site) -> None:
    node = site.hosts["node1"]
    real = node.run(["cat", "/usr/lib/os-release"]).stdout
    other = 'NAME="Arch Linux"\nPRETTY_NAME="Arch Linux"\nID=arch\nBUILD_ID=rolling\n'
    node.put("/usr/lib/os-release", other)
    node.run(["mv", "/etc/debian_version", "/root/"])
    try:
        refused(site, "node1 runs", "Supported are Debian 12, 13; Ubuntu 22.04, 24.04",
                "add it to common_supported")  # fmt: skip
    finally:
        node.put("/usr/lib/os-release", real)
        node.run(["mv", "/root/debian_version", "/etc/"])


def test_a_host_without_a_key_for_the_tailnet_is_reported(site: Site, more: Path) -> None:
    more.write_text(yaml.safe_dump({"rae_nodes": {"hosts": {"node1": {"lab_auth_key": ""}}}}))
    refused(site, "node1 is not in the tailnet and there is no key to join with",
            "put it into the vault as tailscale_auth_key",
            options=("--inventory", str(more)))  # fmt: skip


@pytest.mark.parametrize(
    ("variable", "value", "words"),
    [
        ("common_wheelhouse_dir", "/nowhere", (f"has Python {PYTHON}, and there is no rae-",
                                               f"make wheels PYTHONS={PYTHON}")),
        ("firewall_admin_cidrs", [], ("control: firewall_admin_cidrs is empty",
                                      "Name the network that you come from")),
        ("ollama_archive_sha256", "", ("node1: ollama_archive_sha256 is missing",
                                       "Take the SHA-256 of ollama-linux-amd64.tar.zst")),
        ("control_admin_token", "short", ("control: control_admin_token is missing from the vault",
                                          "`make vault` writes a vault with good ones")),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)  # fmt: skip
def test_what_the_inventory_lacks_is_reported(
    site: Site, variable: str, value: object, words: tuple[str, ...]
) -> None:
    refused(site, *words, options=variables(**{variable: value}))


def test_a_key_that_was_used_is_reported_and_its_host_is_again_as_it_was(
    site: Site, more: Path
) -> None:
    key = site.lab.tailnet.key()
    site.lab.boot("other")
    site.lab.join("other", key)
    more.write_text(yaml.safe_dump({"rae_nodes": {"hosts": {"node1": {"lab_auth_key": key}}}}))
    before = site.files()["node1"]
    ran = site.play("site", "--inventory", str(more))
    assert ran.returncode != 0
    assert "node1 could not join the tailnet" in ran.words
    assert "; the host is again as it was. A key works until it expires" in ran.words
    assert "a one-time key only once; make a new one in the tailnet's admin console" in ran.words
    assert key not in ran.text
    # Ansible's folder for what it copies is its own, and empty.
    assert {line.split()[0] for line in site.files()["node1"] ^ before} <= {
        "/root/.ansible", "/root/.ansible/tmp",
    }  # fmt: skip
    running = site.hosts["node1"].run(["ps", "-eo", "comm="]).stdout.split()
    assert "tailscaled" not in running
    for host in (site.hosts["control"], site.hosts["node1"]):
        there = host.run(["ls", "/opt", "/etc/systemd/system"]).stdout.split()
        assert [name for name in there if name.startswith("rae")] == []
        assert host.run(["test", "-e", "/run/rae-tailscale-key"], check=False).returncode == 1
