"""Who is connected to which remote-desktop server, from recorded facts."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rae_node.guard.remote_ways import (
    BY_COMM,
    SERVERS,
    Inet,
    Process,
    Sign,
    clients,
    servers_among,
    watch,
)

SERVICE = 501  # cgroups by number: a service's, a session's, another's
SESSION = 502
OTHER = 503


def process(comm: str, *argv: str, cgroup: int | None = SERVICE, pid: int = 812) -> Process:
    path = "/a.service" if cgroup == SERVICE else "/session-2.scope"
    return Process(pid, 1000, comm[:15], (comm, *argv, ""), path, cgroup)


def listener(port: int, cgroup: int | None = SERVICE, address: str = "0.0.0.0") -> Inet:
    return Inet(":" in address, address, port, "0.0.0.0", 0, 1000, port, cgroup)


def connection(
    port: int, cgroup: int | None = SERVICE, *, at: str = "100.64.0.1", peer_port: int = 50123
) -> Inet:
    return Inet(":" in at, at, port, "100.64.0.7", peer_port, 1000, 7, cgroup)


def present(
    processes: Sequence[Process],
    listening: Sequence[Inet],
    established: Sequence[Inet] = (),
    udp: Sequence[Inet] = (),
) -> list[str]:
    """Who is there, with the questions to the kernel as the source asks them."""
    watched, found = watch(servers_among(processes), listening, lambda: udp)
    for ipv6 in (False, True):
        ports, peers = watched.local_ports(ipv6), watched.peer_ports
        found += clients(
            watched,
            [
                one
                for one in established
                if one.ipv6 is ipv6 and (one.port in ports or one.peer_port in peers)
            ],
        )
    assert {one.code for one in found} <= {"remote_desktop"}
    return [str(one) for one in found]


@pytest.mark.parametrize(
    ("comm", "port"),
    [
        ("xrdp", 3389),
        ("xrdp", 3390),
        ("Xvnc", 5901),
        ("Xtigervnc", 5901),
        ("x11vnc", 5900),
        ("x0vncserver", 5900),
        ("X0tigervnc", 5900),
        ("wayvnc", 5900),
        ("krdpserver", 3389),
        ("freerdp-shadow-cli", 3389),
        ("gnome-remote-desktop-daemon", 3389),
        ("gnome-remote-desktop-daemon", 5900),
        ("krfb", 5900),
        ("vino-server", 5900),
        ("nxd", 4000),
    ],
)
def test_a_server_counts_while_a_client_is_connected(comm: str, port: int) -> None:
    server, waits = [process(comm)], [listener(port), listener(631, OTHER)]
    assert present(server, waits) == []
    assert present(server, waits, [connection(631, OTHER)]) == []
    (holder,) = present(server, waits, [connection(port)])
    name = BY_COMM[comm[:15]].name
    assert holder == (
        f"{name} (uid 1000, process 812): 100.64.0.7:50123 is connected to port {port}"
    )


def test_a_client_of_another_program_of_the_same_session_is_no_client_of_the_server() -> None:
    server = [process("x11vnc", cgroup=SESSION)]
    waits = [listener(5900, SESSION), listener(3000, SESSION)]
    assert present(server, waits, [connection(3000, SESSION)]) == []


@pytest.mark.parametrize("argv", [("-rfbport", "7000"), ("0.0.0.0", "7000"), ("--rfbport=7000",)])
def test_a_port_of_the_command_line_is_the_servers(argv: tuple[str, ...]) -> None:
    server = [process("Xtigervnc", ":7", *argv, cgroup=SESSION)]
    waits = [listener(7000, SESSION), listener(3000, SESSION)]
    assert len(present(server, waits, [connection(7000, SESSION)])) == 1
    assert present(server, waits, [connection(3000, SESSION)]) == []


def test_a_high_display_has_a_high_port() -> None:
    server = [process("Xvnc", ":57", "-geometry", "1920x1080", cgroup=SESSION)]
    waits = [listener(5957, SESSION), listener(1080, SESSION)]
    assert len(present(server, waits, [connection(5957, SESSION)])) == 1
    assert present(server, waits, [connection(1080, SESSION)]) == []


def test_a_port_that_only_a_file_names_is_found_by_the_cgroup() -> None:
    waits = [listener(7001), listener(3000, SESSION)]
    assert len(present([process("wayvnc")], waits, [connection(7001)])) == 1
    assert present([process("wayvnc")], waits, [connection(3000, SESSION)]) == []


def test_a_server_whose_socket_another_process_made_cannot_be_decided() -> None:
    """Or one in a container with a network of its own, beside another server here."""
    waits = [listener(5901, OTHER)]
    assert "no listening port" in present([process("Xvnc", "-inetd")], waits)[0]
    assert len(present([process("Xvnc", "-inetd")], waits, [connection(5901, OTHER)])) == 2


def test_where_the_kernel_says_no_cgroups_the_port_tells() -> None:
    server, web = [process("x11vnc")], listener(3000, None)
    waits = [listener(5900, None), web]
    assert present(server, waits, [connection(3000, None)]) == []
    assert len(present(server, waits, [connection(5900, None)])) == 1
    assert "no listening port" in present(server, [web])[0]
    unknown = [process("x11vnc", cgroup=None)]
    assert present(unknown, [listener(5900)]) == []
    assert "no listening port" in present(unknown, [listener(3000)])[0]


def test_an_unknown_server_at_a_usual_port_counts_too() -> None:
    (holder,) = present([], [listener(5900, OTHER)], [connection(5900, OTHER)])
    assert holder.startswith("an unknown server: 100.64.0.7:50123 is connected")


def test_the_same_port_at_another_address_is_another_servers() -> None:
    server, waits = [process("wayvnc")], [listener(5900, address="127.0.0.1")]
    assert present(server, waits, [connection(5900)]) == []
    assert len(present(server, waits, [connection(5900, at="127.0.0.1")])) == 1


def test_an_ipv6_client_is_named_so_that_its_port_can_be_read() -> None:
    client = replace(connection(3389, at="fd00::1"), peer="fd00::7")
    (holder,) = present([process("xrdp")], [listener(3389, address="::")], [client])
    assert "[fd00::7]:50123" in holder


def test_a_viewer_that_the_server_called_is_a_client() -> None:
    server, waits = [process("x11vnc", cgroup=SESSION)], [listener(5900, SESSION)]
    assert present(server, waits, [connection(40123, OTHER, peer_port=5500)]) == []
    (holder,) = present(server, waits, [connection(40123, SESSION, peer_port=5500)])
    assert "100.64.0.7:5500 is connected as its viewer" in holder


def test_a_server_without_a_port_cannot_be_decided_and_counts() -> None:
    (holder,) = present([process("x11vnc")], [listener(22, OTHER)])
    assert holder == (
        "x11vnc (uid 1000, process 812): no listening port is known to be its own, so it counts"
        " while it runs; stop it to lend this machine"
    )


@pytest.mark.parametrize("comm", ["gnome-remote-desktop-daemon", "krfb", "vino-server"])
def test_a_desktops_own_server_without_a_port_does_not_share(comm: str) -> None:
    """Each session of GNOME runs its daemon, whether sharing is on or off."""
    assert present([process(comm)], [listener(22, OTHER)]) == []
    shared = [process(comm, cgroup=SESSION)]
    assert present(shared, [listener(1716, SESSION)], [connection(1716, SESSION)]) == []
    own = [process(comm)]
    assert len(present(own, [listener(7001)], [connection(7001)])) == 1


def test_gnomes_second_daemon_holds_a_connection_to_the_first_ones_port() -> None:
    daemons = [
        process("gnome-remote-desktop-daemon", "--system"),
        process("gnome-remote-desktop-daemon", "--handover", cgroup=SESSION, pid=900),
    ]
    waits = [listener(3389, SERVICE, "::")]
    assert present(daemons, waits) == []
    assert len(present(daemons, waits, [connection(3389, SESSION, at="fd00::1")])) == 1
    assert len(present(daemons[1:], waits, [connection(3389, SESSION, at="fd00::1")])) == 1


def test_nomachines_own_connections_are_no_client() -> None:
    """nxserver.bin, nxnode.bin and nxd run always, and talk to each other on loopback."""
    waits = [listener(4000), listener(12001, address="127.0.0.1"), listener(7001)]
    own = [connection(12001, at="127.0.0.1"), connection(7001)]
    assert present([process("nxd")], waits, own) == []
    assert len(present([process("nxd")], waits, [*own, connection(4000)])) == 1


def test_rustdesk_counts_while_its_connection_manager_runs() -> None:
    """rustdesk/rustdesk#9003: `--cm` beside `--service`, `--tray` and `--server`."""
    idle = [process("rustdesk", word) for word in ("--service", "--tray", "--server")]
    assert present(idle, [listener(21118)], [connection(21118)]) == []
    assert "a client is connected" in present([*idle, process("rustdesk", "--cm")], [])[0]
    assert len(present([process("rustdesk", "--cm-no-ui")], [])) == 1


def test_teamviewer_counts_while_its_desktop_process_runs() -> None:
    """mcdope/pam_usb#202: TeamViewer_Desktop is there when a session comes in."""
    assert present([process("teamviewerd")], [listener(5939, address="127.0.0.1")]) == []
    assert len(present([process("TeamViewer_Desktop")], [])) == 1


@pytest.mark.parametrize("base", [47989, 50000])
def test_sunshine_counts_while_its_stream_has_ports(base: int) -> None:
    """The ports of stream.h: nine to eleven above the first."""
    waits = [listener(base - 5), listener(base), listener(base + 1), listener(base + 21)]
    server, noise = [process("sunshine")], [listener(5353), listener(base + 10, OTHER)]
    assert present(server, waits, [connection(base + 1)], noise) == []
    (holder,) = present(server, waits, udp=[*noise, listener(base + 9), listener(base + 10)])
    assert f"{base + 9}, {base + 10}" in holder
    assert "no listening port" in present(server, [])[0]


@pytest.mark.parametrize("comm", ["anydesk", "chrome-remote-desktop-host", "vncserver-x11-core"])
def test_a_server_that_always_has_connections_counts_while_it_runs(comm: str) -> None:
    (holder,) = present([process(comm, "--service")], [])
    assert "process 812" in holder
    assert "stop it" in holder


def test_sshd_is_logind_s_matter() -> None:
    assert present([process("sshd")], [listener(22)], [connection(22)]) == []


def test_names_are_compared_as_the_kernel_cuts_them() -> None:
    assert all(len(comm) <= 15 for comm in BY_COMM)
    assert len(BY_COMM) == sum(len(server.comms) for server in SERVERS)
    needs = {Sign.CONNECTION, Sign.CONNECTION_IF_ANY}
    assert all(bool(server.ports) is (server.sign in needs) for server in SERVERS)


SOCKETS = st.builds(
    listener,
    st.sampled_from([22, 3389, 4000, 5900, 5901, 7000, 47989, 47999]),
    st.sampled_from([SERVICE, SESSION, OTHER, None]),
    st.sampled_from(["0.0.0.0", "127.0.0.1", "::"]),
)
CONNECTIONS = st.builds(
    connection,
    st.sampled_from([22, 3389, 4000, 5900, 5901, 7000, 40000]),
    st.sampled_from([SERVICE, SESSION, OTHER, None]),
    at=st.sampled_from(["100.64.0.1", "127.0.0.1", "fd00::1"]),
    peer_port=st.sampled_from([5500, 50123]),
)
PROCESSES = st.builds(
    process,
    st.sampled_from([comm for server in SERVERS for comm in server.comms]),
    st.sampled_from(["--cm", "--service", ":1", "7000"]),
    cgroup=st.sampled_from([SERVICE, SESSION, OTHER, None]),
)


@given(
    st.lists(PROCESSES, max_size=4),
    st.lists(SOCKETS, max_size=5),
    st.lists(CONNECTIONS, max_size=5),
    CONNECTIONS,
)
def test_one_connection_more_never_makes_somebody_absent(
    processes: list[Process], waits: list[Inet], known: list[Inet], more: Inet
) -> None:
    before = present(processes, waits, known)
    assert set(before) <= set(present(processes, waits, [*known, more]))


@given(st.lists(PROCESSES, max_size=4), st.lists(SOCKETS, max_size=5), PROCESSES)
def test_one_server_more_never_makes_an_undecided_one_absent(
    processes: list[Process], waits: list[Inet], more: Process
) -> None:
    assert set(present(processes, waits)) <= set(present([*processes, more], waits))
