"""What the lab needs of this machine; run as a program, it prints the packages that are missing.

Standard library only: CI asks before there is an environment.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from collections.abc import Callable, Mapping
from pathlib import Path

# A program or file that must be there, and the Debian package that brings it.
NEEDED: Mapping[str, str] = {
    "mmdebstrap": "mmdebstrap",
    "/usr/share/keyrings/debian-archive-keyring.gpg": "debian-archive-keyring",
    "systemd-nspawn": "systemd-container",
    "ip": "iproute2",
    "nft": "nftables",
    "bwrap": "bubblewrap",
    "nsenter": "util-linux",
    "ssh-keygen": "openssh-client",
    "dpkg-scanpackages": "dpkg-dev",
    "gpg": "gpg",
    "gpg-agent": "gpg-agent",
    "c++": "g++",
    "cmake": "cmake",
}
GO = (1, 26, 6)
# su and sudo may leave /usr/sbin out.
_PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"


class LabError(Exception):
    """The lab cannot do what was asked; the text says why, and what to do."""


def _there(name: str) -> bool:
    return Path(name).exists() if name.startswith("/") else bool(shutil.which(name, path=_PATH))


def missing(there: Callable[[str], bool] = _there) -> list[str]:
    """The Debian packages that this machine lacks."""
    return sorted({package for name, package in NEEDED.items() if not there(name)})


def problem(packages: list[str], uid: int, cgroup: Path | None, *, tun: bool = True) -> str | None:
    """Why there can be no lab, with the way out; None when there can be one."""
    if packages:
        command = f"apt-get install -y --no-install-recommends {' '.join(packages)}"
        return f"The lab needs programs that this machine lacks; as root: {command}"
    if uid != 0:
        return "The lab boots containers, which only root may; run it as root"
    if not tun:
        return "The lab's hosts need /dev/net/tun: modprobe tun, or mknod /dev/net/tun c 10 200"
    if cgroup is None:
        return "The lab needs a cgroup2 tree, and none is mounted: mount -t cgroup2 none DIR"
    return None


def unified_cgroup(mountinfo: str) -> Path | None:
    """Where the cgroup2 tree is, as /proc/self/mountinfo has it."""
    for line in mountinfo.splitlines():
        mount, _, kind = line.partition(" - ")
        if kind.startswith("cgroup2 ") and mount.split()[3] == "/":
            return Path(mount.split()[4])
    return None


def check() -> Path:
    """The cgroup2 tree of a machine that has everything. Raises LabError."""
    os.environ["PATH"] = _PATH
    cgroup = unified_cgroup(Path("/proc/self/mountinfo").read_text(encoding="utf-8"))
    tun = Path("/dev/net/tun").is_char_device()
    trouble = problem(missing(), os.geteuid(), cgroup, tun=tun)
    if trouble is not None or cgroup is None:
        raise LabError(trouble)
    return cgroup


def go_problem(said: str | None) -> str | None:
    """Why this Go will not do, with the way out; `said` is what `go env GOVERSION` prints."""
    found = re.match(r"go(\d+)\.(\d+)(?:\.(\d+))?", said or "")
    if found and tuple(int(part or 0) for part in found.groups()) >= GO:
        return None
    wanted = ".".join(map(str, GO))
    return (
        f"The lab builds Tailscale and Ollama, with Go {wanted} or newer; this machine has "
        f"{said or 'none'}. Unpack https://go.dev/dl/ and put its bin on the PATH"
    )


def check_go() -> None:
    """Raises LabError, unless there is a Go that is new enough."""
    said = None
    if _there("go"):
        command = ["go", "env", "GOVERSION"]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    trouble = go_problem(said)
    if trouble:
        raise LabError(trouble)


if __name__ == "__main__":
    print(" ".join(missing()))
