"""Which hosts and addresses inputs may come from: `input_url_hosts` of config.yaml. Pure."""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass

from rae_protocol.weburl import plain_host

Address = ipaddress.IPv4Address | ipaddress.IPv6Address
Network = ipaddress.IPv4Network | ipaddress.IPv6Network

_UNICAST = ipaddress.ip_network("2000::/3")  # the rest of IPv6 is special in some way
_NAT64 = ipaddress.ip_network("64:ff9b::/96")  # RFC 6052: an IPv4 address for IPv6-only networks


@dataclass(frozen=True, slots=True)
class HostRule:
    """An allowed host. `network`: where it may be; None: on the Internet, and not this machine."""

    host: str
    network: Network | None

    def allows(self, address: str, own: bool = False) -> bool:
        """Whether the host may have this address, as getaddrinfo(3) writes it.

        `own`: it is one of this machine's.
        """
        found = ipaddress.ip_address(address)
        if self.network is None:
            return is_public(found) and not own
        return found in self.network


def host_rule(entry: str) -> HostRule:
    """One entry: NAME, ADDRESS, or NAME=NETWORK for a host that is not on the Internet.

    Raises ValueError with what is wrong.
    """
    text, marked, where = entry.partition("=")
    host = plain_host(text)
    literal = _literal(host)
    if literal is not None and marked:
        raise ValueError(f"'{entry}' gives an address another one; leave out '={where}'")
    return HostRule(host, ipaddress.ip_network(where) if marked else literal)


def rules_of(host: str, entries: Iterable[str]) -> list[HostRule]:
    """What the entries say of a host in `plain_host`'s spelling; any of them suffices."""
    return [rule for rule in map(host_rule, entries) if rule.host == host]


def _literal(host: str) -> Network | None:
    try:
        return ipaddress.ip_network(host)
    except ValueError:
        return None


def is_public(address: Address) -> bool:
    """Whether it is a machine's on the Internet: no loopback, no private or tailnet address, …"""
    if isinstance(address, ipaddress.IPv6Address):
        inner = address.ipv4_mapped
        if address in _NAT64:
            inner = ipaddress.IPv4Address(int(address) & 0xFFFFFFFF)
        if inner is not None:
            return is_public(inner)
        # 6to4 and Teredo carry IPv4 addresses, to which a relay of the network may pass them on.
        if address not in _UNICAST or address.sixtofour or address.teredo:
            return False
    return address.is_global and not address.is_multicast
