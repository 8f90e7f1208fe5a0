"""What answers whom: control on its public side and in the tailnet, a node on its owner's LAN."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator

import pytest

from tests.e2e.site import Site
from tests.lab import Host
from tests.until import until

API = 8080
LONG = bool(os.environ.get("RAE_TEST_LONG"))
# Databases, what RAE core listens on, web servers, models; 15432 is published as a container's is.
STANDINS = (80, 443, 3306, 5432, 6379, 9000, 11434, 27017)
PUBLISHED = 15432
NAMED = [22, *STANDINS, PUBLISHED, API, 41641]
LISTEN = """
import socket, sys, time
lines = [socket.create_server(("::", int(port)), family=socket.AF_INET6, dualstack_ipv6=True)
         for port in sys.argv[1:]]
time.sleep(86400)
"""
# As Docker publishes a port: translated before any rule for input is asked.
DNAT = """
table inet docker_like {
  chain prerouting {
    type nat hook prerouting priority -100;
    iifname "host0" tcp dport 15432 redirect to :5432
    iifname "tailscale0" tcp dport 15432 redirect to :5432
  }
}
"""


def listen(host: Host, *ports: int) -> None:
    """Somebody's server on all of a host's addresses, also after a reboot."""
    words = " ".join(str(port) for port in ports)
    host.put("/opt/standin.py", LISTEN)
    host.put("/etc/systemd/system/standin.service",
             f"[Service]\nExecStart=/usr/bin/python3 /opt/standin.py {words}\n"
             "[Install]\nWantedBy=multi-user.target\n")  # fmt: skip
    host.run(["systemctl", "daemon-reload"])
    host.run(["systemctl", "enable", "--quiet", "--now", "standin.service"])
    until(lambda: host.run(["ss", "-Hltn", f"sport = :{ports[-1]}"]).stdout, "it listens")


def forget(host: Host) -> None:
    host.run(["systemctl", "disable", "--quiet", "--now", "standin.service"])


@pytest.fixture(scope="module")
def busy(lent: Site) -> Iterator[Site]:
    """Control with other servers on it, as a host that does more than the mesh has."""
    control = lent.control
    listen(control, *STANDINS)
    control.run(["nft", "--file", "-"], stdin=DNAT)
    yield lent
    control.run(["nft", "delete", "table", "inet", "docker_like"], check=False)
    forget(control)


def public(site: Site) -> tuple[str, str]:
    return site.control.address, site.control.address6


def ports() -> list[int]:
    return list(range(1, 65536)) if LONG else NAMED


def peerapi(site: Site) -> set[int]:
    """The ports that tailscaled itself listens on, on the tailnet's addresses."""
    said = site.control.run(["ss", "-Hltnp"]).stdout
    lines = [line for line in said.splitlines() if '"tailscaled"' in line]
    return {int(line.split()[3].rpartition(":")[2]) for line in lines}


def test_nothing_of_control_answers_outside(busy: Site) -> None:
    """Contract: A2, A14."""
    asked = [*ports(), *peerapi(busy)]
    assert busy.probe("outsider", public(busy), asked) == set()


def test_control_answers_a_node_at_the_api_and_nowhere_else(busy: Site) -> None:
    """Contract: A2, A7, A14."""
    four, six = busy.tailnet("control")
    asked = [*ports(), *peerapi(busy)]
    found = busy.probe("node1", [four, six, *public(busy)], asked)
    # tailscaled answers its peers itself, as the tailnet's policy says: no packet of that arrives.
    tailscaled = {(where, port) for where in (four, six) for port in peerapi(busy)}
    assert found - tailscaled == {(four, API)}


def test_the_stand_ins_are_there_and_the_operator_reaches_them(busy: Site) -> None:
    """Or all of the above would say nothing."""
    listening = busy.control.run(["ss", "-Hltn"]).stdout
    assert all(f":{port} " in listening for port in STANDINS)
    assert busy.control.ssh(["echo", "in"]).stdout == "in\n"


@contextlib.contextmanager
def route_to(site: Site, vantage: str, address: str) -> Iterator[None]:
    """Somebody on control's public network sends packets for its tailnet's address there."""
    host = site.lab.hosts[vantage]
    host.run(["ip", "route", "replace", f"{address}/32", "via", site.control.address])
    try:
        yield
    finally:
        host.run(["ip", "route", "delete", f"{address}/32"])


def closed(site: Site, address: str, six: str) -> None:
    """The API and the databases, from outside, at each address that control has or may get."""
    assert site.probe("outsider", [address, six, *public(site)], NAMED) == set()


def test_the_api_is_closed_to_a_route_of_the_outsider_s(busy: Site) -> None:
    four, six = busy.tailnet("control")
    with route_to(busy, "outsider", four):
        closed(busy, four, six)


def test_the_api_is_closed_outside_while_tailscaled_is_stopped(busy: Site) -> None:
    four, six = busy.tailnet("control")
    busy.control.run(["systemctl", "stop", "tailscaled"])
    try:
        with route_to(busy, "outsider", four):
            closed(busy, four, six)
    finally:
        busy.control.run(["systemctl", "start", "tailscaled"])
    busy.online("node1", "node2", timeout_s=150)


def test_the_api_is_closed_outside_after_a_reboot_before_tailscaled_is_up(busy: Site) -> None:
    four, six = busy.tailnet("control")
    drop = "/etc/systemd/system/tailscaled.service.d/later.conf"
    busy.control.put(drop, "[Unit]\nConditionPathExists=/run/tailscaled-may-start\n")
    with route_to(busy, "outsider", four):
        busy.lab.reboot("control")
        state = busy.control.run(["systemctl", "is-active", "tailscaled"], check=False)
        assert state.stdout == "inactive\n"
        # FreeBind: the socket waits on an address that the host does not have yet.
        assert f"{four}:{API}" in busy.control.run(["ss", "-Hltn"]).stdout
        closed(busy, four, six)
        busy.control.run(["rm", drop])
        busy.control.run(["systemctl", "daemon-reload"])
        busy.control.run(["systemctl", "start", "tailscaled"])
        closed(busy, four, six)
    busy.online("node1", "node2", timeout_s=150)


def test_the_owner_s_own_server_answers_in_the_lan_and_not_in_the_tailnet(lent: Site) -> None:
    """Contract: A7."""
    node = lent.lab.hosts["node1"]
    listen(node, 8123)
    try:
        near = [node.address, node.address6]
        assert lent.probe("outsider", near, [8123]) == {(where, 8123) for where in near}
        for vantage in ("control", "node2"):
            assert lent.probe(vantage, lent.tailnet("node1"), [22, 8123]) == set()
    finally:
        forget(node)
