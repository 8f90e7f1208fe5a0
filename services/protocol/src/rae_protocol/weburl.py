"""URLs that mean the same to every parser, and hosts in one spelling. Pure."""

from __future__ import annotations

import ipaddress
import re

# Fewer than RFC 3986 allows: what parsers read in different ways is a way around a list of hosts.
_PLAIN = re.compile(
    r"https?://(?P<host>\[[0-9A-Fa-f:.]+\]|[A-Za-z0-9._-]+)(?::(?P<port>[0-9]{1,5}))?"
    r"(?:[/?][!\"$-\[\]-~]*)?"  # printable ASCII without `#` and the backslash
)
_LABEL = re.compile(r"[a-z0-9_](?:[a-z0-9_-]{0,61}[a-z0-9_])?")
_NUMBER = re.compile(r"[0-9]+|0x[0-9a-f]*")


def host_of(url: str) -> str:
    """The host of a plain http(s) URL, as `plain_host` spells it. Raises ValueError for others."""
    found = _PLAIN.fullmatch(url)
    if found is None:
        raise ValueError(
            "a URL is http(s)://HOST[:PORT]/PATH in printable ASCII, without user, backslash, '#' "
            "and spaces; percent-encode what its path needs"
        )
    port = found["port"]
    if port is not None and not 0 < int(port) < 65536:
        raise ValueError(f"a port is 1 to 65535, not {port}")
    return plain_host(found["host"])


def plain_host(text: str) -> str:
    """A name in lower case, or an address: IPv4 with four decimal numbers, IPv6 in its short form.

    Brackets around IPv6 are dropped. Raises ValueError.
    """
    if ":" in text:
        address = ipaddress.IPv6Address(text.removeprefix("[").removesuffix("]"))
        if address.scope_id is not None:
            raise ValueError(f"'{text[:80]}' names an interface, which no URL does")
        mapped = address.ipv4_mapped  # Python spells these in two ways: before 3.13 without dots
        return str(address) if mapped is None else f"::ffff:{mapped}"
    labels = text.lower().split(".")
    # The C library takes hexadecimal, octal and short forms for IPv4, too.
    if _NUMBER.fullmatch(labels[-1]):
        return str(ipaddress.IPv4Address(text))
    if len(text) > 253 or not all(map(_LABEL.fullmatch, labels)):
        raise ValueError(
            f"'{text[:80]}' is no host name; write letters, digits and hyphens between single "
            "dots, and others as xn--…"
        )
    return text.lower()
