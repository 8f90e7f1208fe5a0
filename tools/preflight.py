"""What a verb of the Makefile needs of this machine: `python3 -m tools.preflight VERB`.

It runs before any work and before .venv exists, so it needs the standard library alone. Root on
Debian or Ubuntu gets what is missing installed; everybody else gets the one command to run.
"""

from __future__ import annotations

import argparse
import ctypes
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from tools.guest import GUEST

# su and sudo may leave /usr/sbin out.
PATH = f"{os.environ.get('PATH', os.defpath)}:/usr/sbin:/sbin"
GO = (1, 26, 6)
_LISTS = Path("/var/lib/apt/lists")
_TRIAL_S = 10.0


def _program(name: str) -> bool:
    return Path(name).exists() if name.startswith("/") else bool(shutil.which(name, path=PATH))


def _module(name: str) -> bool:
    return importlib.util.find_spec(name) is not None


def _library(name: str) -> bool:
    try:
        ctypes.CDLL(name)
    except OSError:
        return False
    return True


def _compiler(name: str) -> bool:
    # Debian's gcc comes without the C library's headers.
    if not _program(name):
        return False
    command = [name, "-E", "-x", "c", "-o", os.devnull, "-"]
    done = subprocess.run(
        command, input="#include <stdlib.h>\n", text=True, capture_output=True, check=False
    )
    return done.returncode == 0


@dataclass(frozen=True)
class Need:
    """Something that must be there, the Debian packages that bring it, and who uses it."""

    what: str
    packages: str
    why: str
    found: Callable[[str], bool] = _program

    def there(self) -> bool:
        """Whether this machine has it."""
        return self.found(self.what)


_VENV = "python{}.{}-venv".format(*sys.version_info)
PARTS: Mapping[str, tuple[Need, ...]] = {
    "venv": (Need("ensurepip", _VENV, "Python's module that `python -m venv` needs", _module),),
    "demo": (Need("xz", "xz-utils", "the demo's tasks compress files with it"),),
    "box": (
        Need("bwrap", "bubblewrap", "tasks run in its boxes"),
        Need("libseccomp.so.2", "libseccomp2", "filters the system calls of tasks", _library),
        Need("unshare", "util-linux", "faults and tests get mount namespaces of their own"),
        Need("mount", "mount", "small disks to fill are mounted in those"),
    ),
    "test": (
        Need("cc", "gcc libc6-dev", "the tests compile a stand-in for NVIDIA's library", _compiler),
        Need("curl", "curl", "one of the tests' nodes is a shell script around it"),
        Need("openssl", "openssl", "the tests run the commands of docs/protocol.md"),
        Need("busctl", "systemd", "desktops show with it that their machine is lent"),
    ),
    "lab": (
        Need("mmdebstrap", "mmdebstrap", "makes the image of the lab's hosts"),
        Need("/usr/share/keyrings/debian-archive-keyring.gpg", "debian-archive-keyring",
             "proves that image's packages"),
        Need("systemd-nspawn", "systemd-container", "boots the lab's hosts"),
        Need("ip", "iproute2", "makes the lab's bridge"),
        Need("nft", "nftables", "reads the firewall of the lab's hosts"),
        Need("bwrap", "bubblewrap", "tasks run in its boxes"),
        Need("nsenter", "util-linux", "enters the lab's hosts"),
        Need("ssh-keygen", "openssh-client", "Ansible reaches the lab's hosts by ssh"),
        Need("dpkg-scanpackages", "dpkg-dev", "makes the repositories of the lab"),
        Need("gpg", "gpg", "signs them"),
        Need("gpg-agent", "gpg-agent", "signs them"),
        Need("c++", "g++", "compiles Ollama"),
        Need("cmake", "cmake", "compiles Ollama"),
    ),
    "vm": (
        Need("qemu-system-x86_64", "qemu-system-x86", "runs the lab's virtual machines"),
        Need("qemu-img", "qemu-utils", "makes their disks"),
        Need("mke2fs", "e2fsprogs", "makes the file system on those"),
        Need("mmdebstrap", "mmdebstrap", "makes what is in it"),
        Need("/usr/share/keyrings/debian-archive-keyring.gpg", "debian-archive-keyring",
             "proves those packages"),
        Need("unshare", "util-linux", "keeps the mounts that this takes apart"),
        Need("ssh", "openssh-client", "reaches the virtual machines"),
    ),
}  # fmt: skip
VERBS: Mapping[str, tuple[str, ...]] = {
    "venv": ("venv",),
    "demo": ("venv", "demo"),
    "bench": ("venv", "box"),
    "test": ("venv", "demo", "box", "test"),
    "test-vm": ("venv", "vm"),
    "site": ("venv", "demo", "box", "test", "lab"),
    "test-all": ("venv", "demo", "box", "test", "lab", "vm"),
}


def missing(parts: Iterable[str], there: Callable[[Need], bool] = Need.there) -> list[Need]:
    """What this machine lacks."""
    return [need for part in parts for need in PARTS[part] if not there(need)]


def packages(needs: Iterable[Need]) -> list[str]:
    """The Debian packages that bring these."""
    return sorted({package for need in needs for package in need.packages.split()})


def install(names: Sequence[str]) -> list[str]:
    """The command that installs packages."""
    return ["apt-get", "install", "-y", "--no-install-recommends", *names]


SWITCHES = {
    "kernel.unprivileged_userns_clone": ("0", "1"),
    "user.max_user_namespaces": ("0", "10000"),
    "kernel.apparmor_restrict_unprivileged_userns": ("1", "0"),
}
# What tasks' boxes do, and what faults and tests do where they are not root.
_TRIALS = (
    ("bwrap", "--unshare-user", "--unshare-pid", "--unshare-net", "--dev-bind", "/", "/",
     "--proc", "/proc", "true"),
    ("unshare", "--user", "--map-root-user", "--mount", "true"),
)  # fmt: skip


def namespace_problem(said: str, switches: Mapping[str, str]) -> str:
    """Why a user without rights cannot make namespaces here, with the way out."""
    off = [key for key, (closed, _) in SWITCHES.items() if switches.get(key) == closed]
    text = f"An ordinary user cannot make namespaces here, and tasks run in them ({said}"
    if off:
        settings = " ".join(f"{key}={SWITCHES[key][1]}" for key in off)
        return f"{text}). The kernel forbids it; until the next boot this allows it:\n" + (
            f"  sudo sysctl -w {settings}"
        )
    return (
        f"{text}). No sysctl forbids it, so a container or a security module does: allow user "
        "namespaces there (Docker: --privileged), or use a machine that is no container"
    )


def _namespaces() -> str | None:
    for command in _TRIALS:
        if said := _refused(command):
            files = {key: Path("/proc/sys", *key.split(".")) for key in SWITCHES}
            switches = {key: file.read_text().strip() for key, file in files.items()
                        if file.exists()}  # fmt: skip
            return namespace_problem(said, switches)
    return None


def _refused(command: Sequence[str]) -> str | None:
    # Root may always: what counts is the user that tests become.
    user, groups = (None, None) if os.geteuid() else (GUEST, [GUEST])
    try:
        done = subprocess.run(
            command, cwd="/", capture_output=True, text=True, timeout=_TRIAL_S, check=False,
            user=user, group=user, extra_groups=groups,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return f"{command[0]}: no end in {_TRIAL_S:.0f} s"
    if done.returncode == 0:
        return None
    return done.stderr.strip()[-300:] or f"{command[0]}: exit {done.returncode}"


def lab_problem(uid: int, cgroup: Path | None, *, tun: bool = True) -> str | None:
    """Why there can be no lab of booted hosts, with the way out; None when there can be one."""
    if uid != 0:
        return "The lab boots containers, which only root may; run it as root"
    if not tun:
        return "The lab's hosts need /dev/net/tun: modprobe tun, or mknod /dev/net/tun c 10 200"
    if cgroup is None:
        return "The lab needs a cgroup2 tree, and none is mounted: mount -t cgroup2 none DIR"
    return None


def vm_problem(uid: int, machine: str) -> str | None:
    """Why there can be no virtual machines, with the way out; None when there can be some."""
    if uid != 0:
        return "Only root may make the image of the virtual machines; run it as root"
    if machine != "x86_64":
        return f"The virtual machines are x86_64 and this one is {machine}; run it on an x86_64"
    return None


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


def unified_cgroup(mountinfo: str) -> Path | None:
    """Where the cgroup2 tree is, as /proc/self/mountinfo has it."""
    for line in mountinfo.splitlines():
        mount, _, kind = line.partition(" - ")
        if kind.startswith("cgroup2 ") and mount.split()[3] == "/":
            return Path(mount.split()[4])
    return None


def cgroup_here() -> Path | None:
    """Where this machine's cgroup2 tree is."""
    return unified_cgroup(Path("/proc/self/mountinfo").read_text(encoding="utf-8"))


def lab_here() -> str | None:
    """Why this machine can have no lab, with the way out."""
    return lab_problem(os.geteuid(), cgroup_here(), tun=Path("/dev/net/tun").is_char_device())


def vm_here() -> str | None:
    """Why this machine can have no virtual ones, with the way out."""
    return vm_problem(os.geteuid(), os.uname().machine)


def go_here() -> str | None:
    """Why this machine's Go will not do, with the way out."""
    said = None
    if _program("go"):
        command = ["go", "env", "GOVERSION"]
        said = subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
    return go_problem(said)


# What no package brings, by part.
_OBSTACLES: Mapping[str, tuple[Callable[[], str | None], ...]] = {
    "box": (_namespaces,),
    "lab": (lab_here, go_here),
    "vm": (vm_here,),
}


def _obstacle(part: str) -> str | None:
    return next((said for look in _OBSTACLES.get(part, ()) if (said := look())), None)


@dataclass(frozen=True)
class Machine:
    """What `prepare` sees of a machine, and does to it."""

    root: bool
    apt: bool
    lists: bool
    there: Callable[[Need], bool]
    obstacle: Callable[[str], str | None]
    run: Callable[[Sequence[str]], int]
    say: Callable[[str], None]


def prepare(verb: str, machine: Machine) -> int:
    """Install what a verb lacks, or say how to; 0 when the verb can begin."""
    parts = VERBS[verb]
    needs = missing(parts, machine.there)
    if needs and not machine.root and not {"lab", "vm"}.isdisjoint(parts):
        machine.say(f"make {verb} boots hosts, which only root may: sudo make {verb}")
        return 1
    if needs:
        machine.say(f"make {verb} needs what this machine lacks:")
        for need in needs:
            machine.say(f"  {need.what} ({need.why})")
        if not _get(verb, needs, machine):
            return 1
        if left := missing(parts, machine.there):
            names = ", ".join(need.what for need in left)
            machine.say(f"Still missing after that: {names}. Put these on the PATH")
            return 1
    for part in parts:
        if problem := machine.obstacle(part):
            machine.say(f"make {verb} cannot run here. {problem}")
            return 1
    return 0


def _get(verb: str, needs: Sequence[Need], machine: Machine) -> bool:
    names = packages(needs)
    if not machine.apt:
        machine.say(
            "This system has no apt-get: install them with its own package manager "
            f"(Debian's packages are {' '.join(names)}), then `make {verb}` again"
        )
        return False
    if not machine.root:
        update = "" if machine.lists else "sudo apt-get update && "
        machine.say(f"Run this, then `make {verb}` again:")
        machine.say(f"  {update}sudo {shlex.join(install(names))}")
        return False
    for command in (["apt-get", "update", "-q"], install(names)):
        machine.say(f"Installing it, as root: {shlex.join(command)}")
        if status := machine.run(command):
            machine.say(f"{shlex.join(command)} failed ({status}); its lines above say why")
            return False
    return True


def _run(command: Sequence[str]) -> int:
    environment = {**os.environ, "DEBIAN_FRONTEND": "noninteractive"}
    done = subprocess.run(command, env=environment, text=True, check=False, stdout=subprocess.PIPE)
    # A hundred lines of each package's progress would hide what is installed, and why.
    if done.returncode:
        _say(done.stdout)
    return done.returncode


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def main(argv: Sequence[str] | None = None) -> int:
    """Entry point."""
    parser = argparse.ArgumentParser(prog="python3 -m tools.preflight", description=__doc__)
    parser.add_argument("verb", choices=VERBS)
    os.environ["PATH"] = PATH
    lists = _LISTS.is_dir() and any(_LISTS.glob("*_Packages*"))
    here = Machine(os.geteuid() == 0, _program("apt-get"), lists, Need.there, _obstacle, _run, _say)
    return prepare(parser.parse_args(argv).verb, here)


if __name__ == "__main__":
    sys.exit(main())
