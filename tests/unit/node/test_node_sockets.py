"""What the kernel says of sockets: its own answers on loopback, and recorded ones."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from pathlib import Path

import pytest

from rae_node.errors import NodeError
from rae_node.guard import sockets
from rae_node.guard.remote_ways import Inet
from tests.until import until

# Linux 6.18, x86-64, of uid 1000: a listener at all IPv4 addresses and a display's abstract socket
# without their netlink headers, and a datagram with a connection from 127.0.0.1 to a listener of
# both families.
LISTENER = bytes.fromhex(
    "020a0000170d0000000000000000000000000000000000000000000000000000000000000000000000000000f515"
    "000000000000000000000000000080000000e803000007ba020005000800000000000c0015006d10000000000000"
    "0600160052000000"
)
DATAGRAM = bytes.fromhex(
    "7400000014000200010000008a4100000a010000170eb88c00000000000000000000ffff7f000001000000000000"
    "00000000ffff7f000001000000002b05000000000000000000000000000000000000e803000096b6020005000800"
    "000000000c00150080100000000000000600160012000000"
)
DISPLAY = bytes.fromhex(
    "01010a0025070100060000000000000017000000002f746d702f2e5831312d756e69782f583737000500060000000000"
    "0800070000000000"
)


def listening(port: int) -> list[Inet]:
    return [one for one in sockets.tcp_listening() if one.port == port]


def connections(port: int, ipv6: bool) -> list[Inet]:
    return sockets.tcp_established(ipv6, {port}, ())


@pytest.mark.parametrize(
    ("address", "client", "peer", "ipv6"),
    [
        ("127.0.0.1", "127.0.0.1", "127.0.0.1", False),
        ("::1", "::1", "::1", True),
        ("::", "127.0.0.1", "127.0.0.1", True),
    ],
)
def test_a_connection_is_seen_from_its_begin_to_its_end(
    address: str, client: str, peer: str, ipv6: bool
) -> None:
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    dual = address == "::"
    with socket.create_server((address, 0), family=family, dualstack_ipv6=dual) as server:
        port = server.getsockname()[1]
        (seen,) = listening(port)
        assert (seen.address, seen.ipv6) == (address, ipv6)
        assert (seen.uid, seen.inode) == (os.getuid(), os.fstat(server.fileno()).st_ino)
        assert connections(port, ipv6) == []
        with socket.create_connection((client, port)) as near:
            far, _ = server.accept()
            (accepted,) = connections(port, ipv6)
            assert (accepted.peer, accepted.peer_port) == (peer, near.getsockname()[1])
            assert accepted.inode == os.fstat(far.fileno()).st_ino
            assert accepted.cgroup == seen.cgroup
            assert seen.accepts(accepted)
            mine = sockets.tcp_established(near.family is socket.AF_INET6, (), {port})
            assert [one.port for one in mine] == [accepted.peer_port]
            far.close()
        until(lambda: not connections(port, ipv6), "the connection is gone", 5)
    assert listening(port) == []


def test_a_socket_has_the_cgroup_of_who_made_it() -> None:
    own = Path("/proc/self/cgroup").read_text().partition("0::")[2].split("\n")[0]
    roots = [Path("/sys/fs/cgroup"), Path("/sys/fs/cgroup/unified")]
    (root,) = [one for one in roots if (one / "cgroup.procs").exists()]
    with socket.create_server(("127.0.0.1", 0)) as server:
        (seen,) = listening(server.getsockname()[1])
    assert seen.cgroup == Path(f"{root}{own}").stat().st_ino


@pytest.mark.parametrize(("family", "address"), [(socket.AF_INET, "127.0.0.1"), (10, "::1")])
def test_a_udp_socket_is_seen_as_long_as_it_is_bound(family: int, address: str) -> None:
    with socket.socket(family, socket.SOCK_DGRAM) as bound:
        bound.bind((address, 0))
        port = bound.getsockname()[1]
        assert [one.address for one in sockets.udp_bound() if one.port == port] == [address]
    assert port not in [one.port for one in sockets.udp_bound()]


@pytest.fixture
def named(tmp_path: Path) -> Iterator[list[str]]:
    """Listening Unix sockets: one in a folder, one abstract."""
    paths = [str(tmp_path / "wayland-0"), f"@{tmp_path}/X7"]
    with socket.socket(socket.AF_UNIX) as one, socket.socket(socket.AF_UNIX) as two:
        one.bind(paths[0])
        two.bind(f"\0{paths[1][1:]}")
        one.listen()
        two.listen()
        yield paths


def test_unix_sockets_are_seen_while_they_listen(named: list[str], tmp_path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as silent:
        silent.bind(str(tmp_path / "silent"))
        seen = sockets.unix_listening()
    assert set(named) <= set(seen)
    assert str(tmp_path / "silent") not in seen
    assert "" not in seen


def test_a_recorded_listener_is_read() -> None:
    found = sockets.inet_of(LISTENER)
    assert found == Inet(False, "0.0.0.0", 5901, "0.0.0.0", 0, 1000, 178695, 4205)


def test_an_ipv4_client_of_a_socket_of_both_families_is_read_as_ipv4() -> None:
    ((kind, message),) = sockets.messages(DATAGRAM)
    assert kind == 20
    expected = Inet(True, "127.0.0.1", 5902, "127.0.0.1", 47244, 1000, 177814, 4224)
    assert sockets.inet_of(message) == expected


def test_an_older_kernel_does_not_say_the_cgroup() -> None:
    assert sockets.inet_of(LISTENER[:72]).cgroup is None


def test_a_recorded_display_is_read() -> None:
    assert sockets.unix_of(DISPLAY) == "@/tmp/.X11-unix/X77"
    assert sockets.unix_of(DISPLAY[:16]) == ""


def test_a_kernel_that_cannot_answer_makes_blind() -> None:
    with pytest.raises(NodeError, match="modprobe") as caught:
        sockets.inet_sockets(protocol=254, states=1 << 10)
    assert caught.value.rc == "blind"


def test_an_answer_in_pieces_is_read_whole() -> None:
    with socket.create_server(("127.0.0.1", 0), backlog=400) as server:
        address = server.getsockname()
        clients = [socket.create_connection(address) for _ in range(300)]
        accepted = [server.accept()[0] for _ in clients]
        try:
            assert len(connections(address[1], False)) == 300
        finally:
            for one in (*clients, *accepted):
                one.close()
