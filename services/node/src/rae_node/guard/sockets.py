"""The machine's sockets, asked of the kernel by sock_diag(7); that needs no privilege.

The layouts are those of linux/netlink.h, inet_diag.h and unix_diag.h. The kernel sees the network
namespace of the caller alone.
"""

from __future__ import annotations

import os
import socket
import struct
from collections.abc import Collection, Iterator

from rae_node.errors import NodeError
from rae_node.guard.remote_ways import Inet

_SOCK_DIAG = 4  # the netlink protocol
_BY_FAMILY = 20  # the message SOCK_DIAG_BY_FAMILY
_DUMP = 0x301  # NLM_F_REQUEST | NLM_F_DUMP
_ERROR, _DONE = 2, 3
_ESTABLISHED, _LISTEN, _ANY = 1 << 1, 1 << 10, 0xFFFFFFFF
_SHOW_NAME = 0x01
_HEADER = struct.Struct("=IHHII")  # length, type, flags, sequence, port
_INET_REQUEST = struct.Struct("=BBBxI48x")  # family, protocol, extensions, states, any socket
_INET_PORTS = struct.Struct(">4xHH")  # local, of the other side
_INET_REST = struct.Struct("=52xIIIII")  # timer, two queues, uid, inode
_INET_SIZE, _LOCAL, _PEER = 72, 8, 24  # of the message, and where its addresses begin
_UNIX_REQUEST = struct.Struct("=BBHIIIQ")  # family, protocol, -, states, inode, show, cookie
_UNIX_SIZE = 16
_UNIX_INODE = struct.Struct("=4xI")
_ATTRIBUTE = struct.Struct("=HH")
_CGROUP_ID, _NAME = 21, 0  # INET_DIAG_CGROUP_ID, UNIX_DIAG_NAME
_TIMEOUT_S = 1.0
_MAPPED = bytes(10) + b"\xff\xff"
_MODULES = "the kernel needs tcp_diag, udp_diag and unix_diag; try `modprobe` with each of them"


def tcp_listening() -> list[Inet]:
    """Sockets that wait for connections. Raises NodeError."""
    return inet_sockets(socket.IPPROTO_TCP, _LISTEN)


def udp_bound() -> list[Inet]:
    """All UDP sockets that have a port. Raises NodeError."""
    return inet_sockets(socket.IPPROTO_UDP, _ANY)


def tcp_established(ipv6: bool, ports: Collection[int], peers: Collection[int]) -> list[Inet]:
    """A family's connections with one of these local ports, or one of those of the other side.

    The kernel walks its whole table for it: half a millisecond of CPU. Raises NodeError.
    """
    near, far = ({port.to_bytes(2, "big") for port in some} for some in (ports, peers))
    return [
        inet_of(one)
        for one in _inet(ipv6, socket.IPPROTO_TCP, _ESTABLISHED)
        if one[4:6] in near or one[6:8] in far  # there may be thousands
    ]


def unix_listening() -> list[str]:
    """Paths of Unix sockets that wait for connections, abstract ones with `@` before them.

    Raises NodeError.
    """
    return [path for path, _ in _unix(_LISTEN)]


def unix_named() -> list[tuple[str, int]]:
    """Paths and inodes of all Unix sockets with a name. Raises NodeError.

    /proc/net/unix has them, too, but a name with a line break looks like several sockets there.
    """
    return list(_unix(_ANY))


def _unix(states: int) -> Iterator[tuple[str, int]]:
    request = _UNIX_REQUEST.pack(socket.AF_UNIX, 0, 0, states, 0, _SHOW_NAME, 0)
    for message in _dump(request):
        if path := unix_of(message):
            yield path, _UNIX_INODE.unpack_from(message)[0]


def inet_sockets(protocol: int, states: int) -> list[Inet]:
    """The sockets of both families in one of these states, a bit for each. Raises NodeError."""
    return [inet_of(one) for ipv6 in (False, True) for one in _inet(ipv6, protocol, states)]


def _inet(ipv6: bool, protocol: int, states: int) -> Iterator[bytes]:
    family = socket.AF_INET6 if ipv6 else socket.AF_INET
    return _dump(_INET_REQUEST.pack(family, protocol, 0, states))


def inet_of(message: bytes) -> Inet:
    """One inet_diag_msg with its attributes."""
    local, peer = _INET_PORTS.unpack_from(message)
    _, _, _, uid, inode = _INET_REST.unpack_from(message)
    cgroup = _attributes(message, _INET_SIZE).get(_CGROUP_ID)
    return Inet(
        message[0] == socket.AF_INET6,
        _address(message, _LOCAL),
        local,
        _address(message, _PEER),
        peer,
        uid,
        inode,
        None if cgroup is None else struct.unpack("=Q", cgroup)[0],
    )


def unix_of(message: bytes) -> str:
    """The path in one unix_diag_msg; empty for a socket without a name."""
    name = _attributes(message, _UNIX_SIZE).get(_NAME, b"")
    path = os.fsdecode(name.rstrip(b"\0"))
    return f"@{path[1:]}" if path.startswith("\0") else path


def _address(message: bytes, at: int) -> str:
    address = message[at : at + 16]
    if message[0] == socket.AF_INET:
        return socket.inet_ntop(socket.AF_INET, address[:4])
    if address.startswith(_MAPPED):
        return socket.inet_ntop(socket.AF_INET, address[12:])
    return socket.inet_ntop(socket.AF_INET6, address)


def _attributes(message: bytes, at: int) -> dict[int, bytes]:
    found = {}
    while at + _ATTRIBUTE.size <= len(message):
        length, kind = _ATTRIBUTE.unpack_from(message, at)
        found[kind] = message[at + _ATTRIBUTE.size : at + length]
        at += max(length + 3 & ~3, _ATTRIBUTE.size)
    return found


def _dump(request: bytes) -> Iterator[bytes]:
    """Every message of the answer, without its header. Raises NodeError."""
    try:
        with socket.socket(socket.AF_NETLINK, socket.SOCK_RAW, _SOCK_DIAG) as asked:
            asked.settimeout(_TIMEOUT_S)
            asked.send(_HEADER.pack(_HEADER.size + len(request), _BY_FAMILY, _DUMP, 1, 0) + request)
            while True:
                for kind, body in messages(asked.recv(1 << 16)):
                    if kind not in (_ERROR, _DONE):
                        yield body
                    elif number := -struct.unpack_from("=i", body)[0]:
                        raise OSError(number, os.strerror(number))
                    elif kind == _DONE:
                        return
    except OSError as error:
        text = f"the kernel does not tell which sockets there are ({error}); {_MODULES}"
        raise NodeError("blind", text) from error


def messages(data: bytes) -> Iterator[tuple[int, bytes]]:
    """The messages in one datagram of netlink: their types and bodies."""
    at = 0
    while at + _HEADER.size <= len(data):
        length, kind, *_ = _HEADER.unpack_from(data, at)
        yield kind, data[at + _HEADER.size : at + length]
        at += max(length + 3 & ~3, _HEADER.size)
