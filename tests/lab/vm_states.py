"""Virtual machines that run already, up to a state that tests begin with: snapshots, kept.

Each stands on another: a machine that has booted; the same with the agent of this checkout
installed; and what tests make of that (`prepared`), in one of the states.
"""

from __future__ import annotations

import hashlib
import io
import subprocess
import tarfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from tests.lab import vm, vm_image
from tests.lab.cache import Say, cached, keep_newest
from tests.lab.lab import CHECKOUT
from tests.lab.node_files import SOCKETS, script_files, unit_files
from tests.lab.vm import Vm
from tests.lab.vm_image import PACKAGES_FOLDER, USER
from tools import wheelhouse
from tools.devmesh import wait_until

Name = Literal["text", "x11", "wayland", "greeter"]
_KEPT = 16  # snapshots of 220 to 450 MB with an agent, of this checkout's source and others'


@dataclass(frozen=True, slots=True)
class State:
    """How to get there; what a session on seat0 must then be; and a command that succeeds then."""

    begin: str
    session: Mapping[str, str]
    up: str


_AUTOLOGIN = f"""[Service]
ExecStart=
ExecStart=-/sbin/agetty --autologin {USER} --noclear %I linux
"""
STATES: Mapping[Name, State] = {
    "text": State(
        f"mkdir -p /etc/systemd/system/getty@tty1.service.d; "
        f"echo '{_AUTOLOGIN}' > /etc/systemd/system/getty@tty1.service.d/lab.conf; "
        "systemctl daemon-reload; systemctl restart getty@tty1",
        {"Class": "user", "Type": "tty", "Name": USER}, "true",
    ),
    "x11": State(
        "systemctl start lab-x11", {"Class": "user", "Type": "x11", "Name": USER},
        f"test -e /home/{USER}/keys.log",
    ),
    "wayland": State(
        "systemctl start lab-wayland", {"Class": "user", "Type": "wayland", "Name": USER},
        f"test -e /home/{USER}/sway-is-up",
    ),
    "greeter": State(
        "systemctl start lightdm", {"Class": "greeter", "Type": "x11", "Name": "lightdm"},
        "pgrep -u lightdm lightdm-gtk-gre",
    ),
}  # fmt: skip
NAMES: tuple[Name, ...] = tuple(STATES)
# Whatever asks first starts them; on a desktop somebody has asked long before.
_RUNS_ANYWAY = ("polkit",)
_INSTALL = f"""set -e
systemd-sysusers
systemd-tmpfiles --create /etc/tmpfiles.d/rae-node.conf
python3 -m compileall -q {PACKAGES_FOLDER}/rae_protocol {PACKAGES_FOLDER}/rae_node
systemctl daemon-reload
systemctl enable --quiet --now {" ".join(SOCKETS)}
systemctl is-system-running --wait
"""


def sessions(machine: Vm) -> list[dict[str, str]]:
    """logind's active sessions of seat0, by the names of their properties."""
    listed = machine.run(["loginctl", "list-sessions", "--no-legend"]).stdout
    found = []
    for line in listed.splitlines():
        shown = machine.run(["loginctl", "show-session", line.split()[0]], check=False).stdout
        session = dict(pair.split("=", 1) for pair in shown.splitlines() if "=" in pair)
        if (session.get("Active"), session.get("Seat")) == ("yes", "seat0"):
            found.append(session)
    return found


def booted(say: Say) -> Path:
    """The snapshot of a machine that has just booted. Raises LabError."""
    image = vm_image.build(say)
    # The guest reads the counter of this processor, at the speed that it measured when it booted.
    processor = _line("/proc/cpuinfo", "model name")
    qemu = subprocess.run(["qemu-system-x86_64", "--version"], capture_output=True, check=True)
    made_of = [image.name, repr((vm.MACHINE, _RUNS_ANYWAY)), processor, qemu.stdout.decode()]

    def make(partial: Path, _lock: int) -> None:
        with Vm(image, keep=partial) as machine:
            machine.run(["systemctl", "is-system-running", "--wait"], timeout_s=180)
            machine.run(["systemctl", "start", *_RUNS_ANYWAY])
            machine.save()

    return cached(f"vm-booted-{digest(made_of)}.qcow2", say, "half a minute", make)


def installed(say: Say) -> Path:
    """The same with the agent of this checkout, installed and not enabled. Raises LabError."""
    made_of = [_INSTALL, wheelhouse.release("node")]

    def install(machine: Vm) -> None:
        machine.unpack(_archive())
        machine.run(["sh", "-c", _INSTALL], timeout_s=180)

    return prepared("installed", booted(say), made_of, say, install)


def prepared(
    name: str, base: Path, made_of: Sequence[str], say: Say, prepare: Callable[[Vm], object]
) -> Path:
    """The snapshot of a machine that began as `base` and was then prepared. Raises LabError.

    `made_of` is all that `prepare` depends on. Few are kept: they are of one source.
    """
    image = vm_image.build(say)

    def make(partial: Path, _lock: int) -> None:
        with Vm(image, base, keep=partial) as machine:
            prepare(machine)
            machine.save()

    target = f"vm-of-source-{name}-{digest([base.name, *made_of])}.qcow2"
    made = cached(target, say, "half a minute", make)
    keep_newest(_KEPT, "vm-of-source-*.qcow2")
    return made


def begin(machine: Vm, name: Name) -> None:
    """Bring a machine that has just booted into a state. Raises LabError, MeshError."""
    state = STATES[name]
    machine.run(["sh", "-c", state.begin], timeout_s=120)

    def there() -> bool:
        up = machine.run(["sh", "-c", state.up], check=False).returncode == 0
        return up and any(state.session.items() <= seen.items() for seen in sessions(machine))

    wait_until(there, 120, f"a session like {state.session}", every_s=0.5)


def _archive() -> bytes:
    """A tar of what the node role installs, and the packages of this checkout."""
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as tar:
        for path, text in (unit_files() | script_files()).items():
            info = tarfile.TarInfo(path.lstrip("/"))
            info.size = len(text.encode())
            tar.addfile(info, io.BytesIO(text.encode()))
        for package in ("protocol", "node"):
            source = CHECKOUT / "services" / package / "src" / f"rae_{package}"
            tar.add(source, f"{PACKAGES_FOLDER[1:]}/rae_{package}", filter=_as_installed)
    return buffer.getvalue()


def _as_installed(info: tarfile.TarInfo) -> tarfile.TarInfo | None:
    if "__pycache__" in info.name:
        return None
    info.uid = info.gid = 0
    info.mode = 0o755 if info.isdir() else 0o644
    return info


def digest(parts: Sequence[str]) -> str:
    """Twelve digits that stand for all of these."""
    return hashlib.sha256("\n".join(parts).encode()).hexdigest()[:12]


def _line(path: str, beginning: str) -> str:
    lines = Path(path).read_text(encoding="utf-8").splitlines()
    return next((line for line in lines if line.startswith(beginning)), "")
