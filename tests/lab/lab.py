"""Hosts on a bridge of their own; nothing of them stays, however the program that made them ends.

Everything of a lab (bridge, addresses, cgroup, folder) is named by a number. Who holds the lock
`NUMBER.lock` owns it, and the kernel lets go of the lock when the owner dies: what belongs to a
number whose lock is free has no owner, and the next lab removes it.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import secrets
import shutil
import socket
import subprocess
import sys
import time
import uuid
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from types import TracebackType

import yaml

from tests.lab import cache, image, ollama, preflight, tailnet
from tests.lab.host import Host, leader_of
from tests.lab.inventory import inventory
from tests.lab.preflight import LabError
from tests.lab.tailnet import Tailnet
from tools.devmesh import wait_until
from tools.processes import MeshError

STATE = Path("/var/lib/rae-lab")  # one place for the whole machine: so are bridges and addresses
CHECKOUT = Path(__file__).resolve().parents[2]
INVENTORY = Path("inventory/hosts.yml")  # in a lab's folder
VAULT_PASSWORD = Path("vault_password")
_MOST = 200
# In a mount namespace of its own, so that all mounts end with the host: its files are in memory,
# and it gets the pure cgroup2 tree that guests want, while the machine keeps its own. The end of
# systemd-nspawn tells a reboot (133) from a halt (0), after which a line in the pipe boots again.
_BOOT = """
set -e
root=$1 group=$2 image=$3 files=$4 tree=$5
shift 5
echo $$ > "$root/$group.keeper/cgroup.procs"
mount -t tmpfs -o mode=755,size=4G lab "$tree"
tar --extract --numeric-owner --xattrs --xattrs-include='*' --file="$image" --directory="$tree"
cp -r "$files/." "$tree"
umount -R /sys/fs/cgroup
mount -t cgroup2 none /sys/fs/cgroup
while true; do
  said=0
  bash -c 'echo $$ > "$0/cgroup.procs"; exec systemd-nspawn "$@"' \\
    "/sys/fs/cgroup/$group" --directory="$tree" "$@" || said=$?
  case $said in
    133) ;;
    0) read -r _ < "$files.start" ;;
    *) exit "$said" ;;
  esac
done
"""
# What is not a host, in a cgroup that ends with the lab.
_BESIDE = 'echo $$ > "$0/cgroup.procs"; exec "$@"'


class Lab:
    """Use it as a context manager: `with Lab() as lab: (node,) = lab.boot("node1")`."""

    def __init__(
        self, say: cache.Say = lambda _line: None, *, kept: bool = False,
        packages: Sequence[str] = (),
    ) -> None:  # fmt: skip
        """`packages`: what its hosts have beside those of every lab."""
        self._say = say
        self._packages = packages
        self._kept = kept
        self._lock = -1
        self._spawned: dict[str, subprocess.Popen[bytes]] = {}
        self._servers: list[subprocess.Popen[bytes]] = []
        self.hosts: dict[str, Host] = {}
        self.number = 0

    def __enter__(self) -> Lab:
        self._root = preflight.check()
        self._image = image.build(self._say, self._packages)
        STATE.mkdir(mode=0o700, parents=True, exist_ok=True)
        sweep(self._root)
        for number in range(1, _MOST):
            self._lock = hold(number)
            if self._lock >= 0:
                self.number = number
                break
        else:
            raise LabError(f"All {_MOST - 1} labs of this machine are in use; end one")
        try:
            note = {"pid": os.getpid(), "checkout": str(CHECKOUT), "kept": self._kept}
            os.truncate(self._lock, 0)
            os.write(self._lock, json.dumps(note).encode())
            self._prepare()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    @property
    def folder(self) -> Path:
        """What the lab keeps on disk: consoles, keys, no host."""
        return STATE / str(self.number)

    @property
    def bridge(self) -> str:
        """The name of its bridge, and of its cgroup."""
        return f"raelab{self.number}"

    @property
    def network6(self) -> str:
        """Its IPv6 prefix, to which a host's number is appended."""
        return f"fd99:{self.number:x}::"

    def _prepare(self) -> None:
        _remove(self.number, self._root)  # since `sweep`, another owner may have come and died
        self.folder.mkdir(mode=0o700)
        _do("ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", self.bridge, "-f",
            str(self.folder / "key"))  # fmt: skip
        _do("ip", "link", "add", self.bridge, "type", "bridge")
        _do("ip", "address", "add", f"10.99.{self.number}.1/24", "dev", self.bridge)
        _do("ip", "address", "add", f"{self.network6}1/64", "dev", self.bridge, "nodad")
        _do("ip", "link", "set", self.bridge, "up")

    def boot(self, *names: str) -> list[Host]:
        """Start hosts, all at once, and wait until systemd and sshd are up. Raises LabError."""
        numbered = list(enumerate(names, start=2 + len(self._spawned)))
        with ThreadPoolExecutor(len(names)) as pool:
            hosts = list(pool.map(self._boot, *zip(*numbered, strict=True)))
        self.hosts |= {host.name: host for host in hosts}
        with (self.folder / "known_hosts").open("a") as known:
            for host in hosts:
                key = host.run(["cat", "/etc/ssh/ssh_host_ed25519_key.pub"]).stdout
                known.write(f"{host.address},{host.address6} {key}")
        return hosts

    def reboot(self, name: str) -> Host:
        """Reboot a host as its administrator would, and wait until it is up. Raises LabError."""
        before = self.hosts[name].leader
        self.hosts[name].run(["systemctl", "reboot"], check=False)  # it may end before it answers
        return self._again(name, before)

    def stop(self, name: str) -> None:
        """Halt a host; its files stay. Raises LabError."""
        host = self.hosts[name]
        host.run(["systemctl", "poweroff"], check=False)
        wait_until(lambda: leader_of(host.keeper) is None, 90, f"{name} is down")

    def start(self, name: str) -> Host:
        """Boot a host that is down. Raises LabError."""
        if leader_of(self.hosts[name].keeper) is None and self._spawned[name].poll() is None:
            (self.folder / f"{name}.files.start").write_text("go\n")
        return self._again(name, 0)

    @cached_property
    def tailnet(self) -> Tailnet:
        """The lab's tailnet, started by the first who asks. Raises LabError."""
        programs, folder = tailnet.build(self._say), self.folder / "tailnet"
        (folder / "keys").mkdir(parents=True)
        cgroup = self._root / self.bridge / "tailnet.server"
        cgroup.mkdir(parents=True)
        server = [str(programs / "server"), f"10.99.{self.number}.1", str(folder),
                  str(programs / "vendor")]  # fmt: skip
        with (folder / "log").open("wb") as log:
            self._servers.append(subprocess.Popen(
                ["bash", "-c", _BESIDE, str(cgroup), *server],
                stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True,
            ))  # fmt: skip
        try:
            wait_until((folder / "url").exists, 20, "the tailnet's server listens")
        except MeshError as error:
            raise LabError(f"{error}\n{(folder / 'log').read_text()[-3000:]}") from None
        return Tailnet((folder / "url").read_text(), programs / "guest", folder)

    def join(self, name: str, key: str = "", *flags: str) -> None:
        """Make a host one of the tailnet's, as a role will; without a key, with one of its own."""
        host, key = self.hosts[name], key or self.tailnet.key()
        host.copy(self.tailnet.programs, "/usr/local/bin")
        host.run(["mv", "/usr/local/bin/tailscaled", "/usr/local/sbin/tailscaled"])
        host.put("/etc/systemd/system/tailscaled.service", tailnet.UNIT)
        host.run(["systemctl", "enable", "--quiet", "--now", "tailscaled"])
        host.put("/run/lab/key", key, mode=0o600)
        host.run(["tailscale", "up", f"--login-server={self.tailnet.url}", f"--hostname={name}",
                  "--auth-key=file:/run/lab/key", "--timeout=30s", *flags])  # fmt: skip

    def write_inventory(self) -> Path:
        """Write what Ansible must know of the hosts that run, with new keys. Raises LabError."""
        networks = f"10.99.{self.number}.0/24", f"{self.network6}/64"
        known = inventory(self.hosts, self.tailnet, ollama.build(self._say), networks)
        file = self.folder / INVENTORY
        # The example that users copy, and what the lab does otherwise.
        for variables in ("inventory/example", "tests/lab"):
            source = CHECKOUT / variables / "group_vars"
            shutil.copytree(source, file.parent / "group_vars", dirs_exist_ok=True)
        password = self.folder / VAULT_PASSWORD
        if not password.exists():
            _private(password, secrets.token_urlsafe(16))
            vault = ["-m", "tools.new_vault", "--password-file", str(password), str(file.parent)]
            _do(sys.executable, *vault, cwd=CHECKOUT)
        _private(file, yaml.safe_dump(known, sort_keys=False, width=1000))
        return file

    def _again(self, name: str, before: int) -> Host:
        started = time.monotonic()
        self.hosts[name] = host = self._wait(self.hosts[name], before)
        self._say(f"{name}: up again in {time.monotonic() - started:.1f} s")
        return host

    def _boot(self, last_byte: int, name: str) -> Host:
        started = time.monotonic()
        address, address6 = f"10.99.{self.number}.{last_byte}", f"{self.network6}{last_byte:x}"
        for path, content in self._files(name, address, address6).items():
            file = self.folder / f"{name}.files" / path
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(content, encoding="utf-8")
        self._spawned[name] = self._spawn(name)
        host = self._wait(Host(name, address, address6, self._spawned[name].pid, self.folder))
        (self.folder / f"{name}.json").write_text(json.dumps([address, address6, host.keeper]))
        self._say(
            f"{name}: {address} {address6}, up in {time.monotonic() - started:.1f} s"
            + (f"; failed: {' '.join(host.failed)}" if host.failed else "")
        )
        return host

    def _files(self, name: str, address: str, address6: str) -> Mapping[str, str]:
        network = (
            f"[Match]\nName=host0\n[Network]\nAddress={address}/24\nIPv6AcceptRA=no\n"
            # Looking for its own address on a bridge of ours would only take a second.
            f"[Address]\nAddress={address6}/64\nDuplicateAddressDetection=none\n"
        )
        return {
            "etc/hostname": f"{name}\n",
            "etc/hosts": f"127.0.0.1 localhost\n127.0.1.1 {name}\n",
            "etc/resolv.conf": "# no resolver; a tailnet brings its own\n",
            # Without one it would be a first boot, which enables what it likes.
            "etc/machine-id": f"{uuid.uuid4().hex}\n",
            "etc/systemd/network/10-lab.network": network,
            "root/.ssh/authorized_keys": (self.folder / "key.pub").read_text(),
        }

    def _spawn(self, name: str) -> subprocess.Popen[bytes]:
        group, tree = f"{self.bridge}/{name}", self.folder / name
        (self._root / group).mkdir(parents=True)
        (self._root / f"{group}.keeper").mkdir()
        tree.mkdir()
        os.mkfifo(f"{tree}.files.start")
        with (self.folder / f"{name}.console").open("wb") as console:
            return subprocess.Popen(
                ["unshare", "--mount", "--propagation=private", "bash", "-c", _BOOT, "lab",
                 str(self._root), group, str(self._image), f"{tree}.files", str(tree), "--quiet",
                 f"--machine={self.bridge}-{name}",
                 f"--hostname={name}", f"--network-bridge={self.bridge}", "--register=no",
                 "--bind=/dev/net/tun", "--capability=CAP_NET_ADMIN",
                 "--keep-unit", "--settings=no", "--resolv-conf=off", "--timezone=off",
                 "--link-journal=no", "--boot", "--console=pipe"],
                stdin=subprocess.DEVNULL, stdout=console, stderr=console, start_new_session=True,
            )  # fmt: skip

    def _wait(self, host: Host, before: int = 0) -> Host:
        try:
            self._wait_up(host, before, 90)
        except MeshError as error:
            console = (self.folder / f"{host.name}.console").read_text(errors="replace")
            raise LabError(
                f"{host.name} did not boot: {error}. Where many hosts run (each takes about 8 of "
                "root's), raise fs.inotify.max_user_instances.\n" + console[-3000:]
            ) from None
        units = host.run(["systemctl", "--failed", "--plain", "--no-legend"]).stdout
        return replace(host, failed=tuple(line.split()[0] for line in units.splitlines()))

    def _wait_up(self, host: Host, before: int, timeout_s: float) -> None:
        keeper = self._spawned[host.name]

        def led() -> bool:
            if keeper.poll() is not None:
                raise MeshError(f"systemd-nspawn ended with {keeper.returncode}")
            return leader_of(keeper.pid) not in {None, before}

        def booted() -> bool:
            if not led():
                return False
            state = host.run(["systemctl", "is-system-running"], check=False)
            return state.stdout.strip() in {"running", "degraded"}

        def answers() -> bool:
            with contextlib.suppress(OSError), socket.create_connection((host.address, 22), 1.0):
                return True
            return False

        wait_until(led, timeout_s, "systemd starts inside")
        wait_until(booted, timeout_s, "systemd says running or degraded", every_s=0.1)
        wait_until(answers, timeout_s, f"sshd answers on {host.address}")

    def close(self) -> None:
        """End every host and remove what is the lab's."""
        if self._lock < 0:
            return
        _remove(self.number, self._root)
        for process in [*self._spawned.values(), *self._servers]:
            process.wait()
        os.close(self._lock)
        self._lock = -1


def owned() -> Iterator[dict[str, object]]:
    """The labs that somebody holds now: number, pid, checkout, kept."""
    for file in sorted(STATE.glob("*.lock")):
        held = hold(int(file.stem))
        if held >= 0:
            os.close(held)
            continue
        with contextlib.suppress(ValueError):  # its owner is just writing it
            yield {"number": int(file.stem), **json.loads(file.read_text())}


def sweep(root: Path) -> list[int]:
    """Remove what dead owners have left; the numbers of their labs."""
    swept = []
    for file in sorted(STATE.glob("*.lock")):
        lock = hold(int(file.stem))
        if lock >= 0:
            if _remove(int(file.stem), root):
                swept.append(int(file.stem))
            os.close(lock)
    return swept


def hold(number: int) -> int:
    """The lock of a lab, which the kernel gives back when we die; -1 when somebody has it."""
    lock = os.open(STATE / f"{number}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(lock)
        return -1
    return lock


def _remove(number: int, root: Path) -> bool:
    """End and remove all of a lab whose lock is held; whether there was anything."""
    cgroup, bridge, folder = root / f"raelab{number}", f"raelab{number}", STATE / str(number)
    there = [cgroup.exists(), Path(f"/sys/class/net/{bridge}").exists(), folder.exists()]
    if there[0]:
        _end(cgroup)
    if there[1]:
        _do("ip", "link", "delete", bridge)
    if there[2]:
        shutil.rmtree(folder)
    return any(there)


def _end(cgroup: Path) -> None:
    """Kill all that is in a lab's cgroup, and remove it."""

    def empty(*groups: Path) -> bool:
        return all("populated 0" in (group / "cgroup.events").read_text() for group in groups)

    guests = [payload.parent for payload in cgroup.glob("*/payload")]
    for guest in guests:
        (guest / "payload" / "cgroup.kill").write_text("1")
    # systemd-nspawn sees their end, and puts away its own files in /run.
    with contextlib.suppress(MeshError):
        wait_until(lambda: empty(*guests), 5, "systemd-nspawn ends")
    (cgroup / "cgroup.kill").write_text("1")
    wait_until(lambda: empty(cgroup), 20, f"{cgroup} is empty")
    for path, _, _ in os.walk(cgroup, topdown=False):
        Path(path).rmdir()


def _private(file: Path, text: str) -> None:
    file.touch(mode=0o600)
    file.write_text(text)


def _do(*argv: str, cwd: Path | None = None) -> None:
    done = subprocess.run(argv, capture_output=True, text=True, timeout=30, check=False, cwd=cwd)
    if done.returncode != 0:
        raise LabError(f"`{' '.join(argv)}` failed: {done.stderr.strip()}")
