"""Before anything runs: one agent only, nothing left of an earlier one, a name for the machine."""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import os
import socket
import time
import uuid
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import Any

from rae_node.config.layout import Layout, write_file
from rae_node.errors import ConfigError, NodeError
from rae_node.guard.sockets import unix_named
from rae_node.isolation.base import Isolation
from rae_node.supervisor.process_tree import all_pids
from rae_node.telemetry.log import EventLog
from rae_node.workspace.recovery import recover
from rae_protocol.client import RaeClient
from rae_protocol.errors import RaeError

_LOCK_S = 0.3
_PERMANENT = "0"  # NET_ADDR_PERM, linux/netdevice.h


class AgentLock:
    """Held as long as the agent lives: one per root folder, one per node_id and control."""

    def __init__(self, layout: Layout, node_id: str, endpoint: str) -> None:
        """Take both locks. Raises NodeError `already_running`, `not_its_user`, OSError."""
        owner = layout.run.stat().st_uid
        if owner != os.getuid():  # a lock of ours would keep its own agent out
            raise NodeError(
                "not_its_user",
                f"{layout.root} is a node whose agent runs as user {owner}, and this is user "
                f"{os.getuid()}; an installed node is started with `systemctl start rae-node`",
            )
        self._file = (layout.run / "lock").open("a")
        os.fchmod(self._file.fileno(), 0o600)  # who may read it could lock it
        try:
            self._lock()
        except OSError as error:
            holder = _lock_holder(self._file.fileno())
            self._file.close()
            raise NodeError(
                "already_running",
                f"Another agent serves {layout.root}{holder}; stop it first (rae-node status shows "
                "it)",
            ) from error
        digest = hashlib.sha256(f"{node_id}\n{endpoint}".encode()).hexdigest()[:32]
        prefix = f"rae-node/{os.getuid()}/{digest}/"
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        # Every user may take abstract names: a fixed one could be another's before it is ours. So
        # each agent takes one of its own, and looks who of its user has another like it.
        self._socket.bind(f"\0{prefix}{uuid.uuid4().hex}")
        other = _same_node(prefix, os.fstat(self._socket.fileno()).st_ino)
        if other is not None:
            self.release()
            raise NodeError(
                "already_running",
                f"Another agent on this machine (process {other}) is node {node_id} at {endpoint}; "
                "stop it, or take another node_id",
            )

    def _lock(self) -> None:
        end = time.monotonic() + _LOCK_S
        while True:
            try:
                return fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except OSError:
                # `report` and `doctor` look by taking it for an instant.
                if time.monotonic() >= end:
                    raise
                time.sleep(0.01)

    def release(self) -> None:
        """Let go of both."""
        self._socket.close()
        self._file.close()


def _lock_holder(lock: int) -> str:
    """` (process N of user U)`, as far as the kernel tells who holds an open file's lock."""
    inode = str(os.fstat(lock).st_ino)
    with contextlib.suppress(OSError, ValueError):
        for line in Path("/proc/locks").read_text(encoding="ascii").splitlines():
            words = line.split()  # 1: FLOCK ADVISORY WRITE 4711 fe:00:1234 0 EOF
            if words[1] == "FLOCK" and words[5].rpartition(":")[2] == inode:
                return f" (process {words[4]} of user {Path('/proc', words[4]).stat().st_uid})"
    return ""


def _same_node(prefix: str, own_inode: int) -> int | None:
    """A process of this user with an abstract socket of that prefix, but for our own socket.

    Other users' sockets do not count, whatever their names. Where the kernel does not tell, there
    is none: control refuses a second agent of another folder. Raises OSError.
    """
    named: list[tuple[str, int]] = []
    with contextlib.suppress(NodeError):
        named = unix_named()
    links = {
        f"socket:[{inode}]"
        for name, inode in named
        if name.startswith(f"@{prefix}") and inode != own_inode
    }
    for pid in all_pids() if links else ():
        proc = Path("/proc", str(pid))
        with contextlib.suppress(OSError):  # gone, or another user's
            if proc.stat().st_uid == os.getuid() and links & set(map(_target, proc.glob("fd/*"))):
                return pid
    return None


def _target(link: Path) -> str:
    try:
        return str(link.readlink())
    except OSError:
        return ""


def end_predecessors(layout: Layout, bound_s: float, log: EventLog, isolation: Isolation) -> None:
    """Kill every process of an earlier agent, then wipe what its tasks left.

    Raises NodeError when something does not die: two attempts of a task must never live at once.
    """
    try:
        killed = isolation.end_all(bound_s)
    except TimeoutError as error:
        raise NodeError("predecessor_alive", f"Of an earlier agent, {error}; end them") from error
    if killed:
        log.warning("predecessors_killed", count=killed)
    recover(layout, log, isolation.wipe)


def machine_id(
    layout: Layout,
    source: Path = Path("/etc/machine-id"),
    cards: Path = Path("/sys/class/net"),
) -> str:
    """A stable word for this agent's place that tells nothing about it. Raises OSError.

    Control closes leases by it: an agent has seen to it that nothing of its predecessor lives, but
    only of one with the same folder on the same machine. A copied disk brings its machine-id along,
    so the addresses of the built-in network cards are part of the word.
    """
    try:
        text = source.read_text(encoding="ascii").strip()
    except (OSError, UnicodeDecodeError):
        text = ""
    if not text:
        file = layout.run / "machine-id"
        if not file.exists():
            file.write_text(uuid.uuid4().hex, encoding="ascii")
        text = file.read_text(encoding="ascii").strip()
    words = ["rae-node", text, str(layout.root.resolve()), *sorted(_card_addresses(cards))]
    return hashlib.sha256("\n".join(words).encode(errors="surrogateescape")).hexdigest()[:32]


def _card_addresses(cards: Path) -> Iterator[str]:
    """Addresses of built-in cards that stay: none that is plugged in or chosen by software.

    A wireless card's is its radio's: NetworkManager gives the interface random ones now and then.
    """
    for card in cards.glob("*"):
        try:
            bus = (card / "device" / "subsystem").resolve(strict=True).name
            radio = card / "phy80211" / "macaddress"
            kept = (card / "addr_assign_type").read_text().strip() == _PERMANENT
            if bus != "usb" and (kept or radio.exists()):
                yield (radio if radio.exists() else card / "address").read_text().strip()
        except OSError:  # no hardware, or gone meanwhile
            continue


def read_secret(source: str, environ: MutableMapping[str, str]) -> str:
    """A secret by its source: `env:NAME`, `credential:NAME` (systemd's), or a file.

    What stood in the environment is taken out of it, lest children inherit it. Raises ConfigError
    with the source, never with the secret.
    """
    kind, _, name = source.partition(":")
    if kind == "env":
        if name not in environ:
            raise ConfigError(f"{source}: {name} is not set; set it in the agent's environment")
        return environ.pop(name)
    file = Path(source)
    if kind == "credential":
        folder = environ.get("CREDENTIALS_DIRECTORY")
        if not folder:
            raise ConfigError(
                f"{source}: systemd passed none; add LoadCredential={name} to the unit"
            )
        file = Path(folder, Path(name).name)
    try:
        return file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(
            f"{source} cannot be read ({type(error).__name__}); enrol this node with "
            "`raectl nodes enrol` and put the answer there"
        ) from error


def read_enrolment(source: str, environ: MutableMapping[str, str]) -> dict[str, Any]:
    """The node's secret, its kind and control's keys for NodeClient. Raises ConfigError."""
    try:
        data = json.loads(read_secret(source, environ))
        secret, kind = str(data["enrolment_secret"]), str(data.get("kind", "hmac"))
        keys = [str(key) for key in data.get("control_public_keys", [])]
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        # Not "from error": a parser's complaint quotes what it read.
        raise ConfigError(
            f"{source} is no enrolment ({type(error).__name__}); enrol this node with "
            "`raectl nodes enrol` and put the answer there"
        ) from None
    if kind == "hmac" and not keys:
        raise ConfigError(
            f"{source}: control_public_keys is missing; take it from `raectl nodes enrol`"
        )
    return {"secret": secret, "kind": kind, "public_keys": keys}


def read_credentials(data: Path) -> dict[str, object]:
    """`credentials.json` of a dev control. Raises ConfigError."""
    file = data / "credentials.json"
    try:
        found = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"{file} cannot be read; start `rae-control serve --dev --data {data}` first"
        ) from error
    if not isinstance(found, dict) or "url" not in found:
        raise ConfigError(
            f"{file} does not name control's url; start `rae-control serve --dev` again"
        )
    return found


def enrol_dev(credentials: dict[str, object], node_id: str, file: Path) -> None:
    """Write the node's enrolment file, out of the credentials or from control itself.

    Raises NodeError when control does not answer or refuses.
    """
    nodes = credentials.get("nodes")
    known = nodes.get(node_id) if isinstance(nodes, dict) else None
    if isinstance(known, dict):
        answer = {**known, "control_public_keys": [credentials["control_public_key"]]}
    else:
        try:
            client = RaeClient(str(credentials["url"]), str(credentials.get("admin_token")))
            revoked = {node.node_id for node in client.nodes(True) if node.state == "revoked"}
            if node_id in revoked:
                raise NodeError(
                    "node_revoked",
                    f"{node_id} was revoked; to lend this machine again, run `raectl nodes enrol"
                    f" {node_id}` first",
                )
            answer = client.enrol(node_id, trusted=True).model_dump()
        except RaeError as error:
            if file.exists():  # from an earlier start; control may come later
                return
            raise NodeError("not_enrolled", f"{node_id} cannot be enrolled: {error}") from error
    write_file(file, json.dumps(answer))
