"""One booted host: commands in it, by nsenter or by ssh."""

from __future__ import annotations

import contextlib
import os
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tests.lab.preflight import LabError

Done = subprocess.CompletedProcess[str]
_ENV = {"PATH": "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG": "C.UTF-8"}


@dataclass(frozen=True, slots=True)
class Host:
    """A machine of the lab, the same after a reboot; `keeper` is who boots it, seen from outside.

    `folder` is the lab's own.
    """

    name: str
    address: str
    address6: str
    keeper: int
    folder: Path
    failed: tuple[str, ...] = ()

    @property
    def leader(self) -> int:
        """Its PID 1, seen from outside. Raises LabError when it is down."""
        leader = leader_of(self.keeper)
        if leader is None:
            raise LabError(f"{self.name} is down; `lab.start` boots it again")
        return leader

    def enter(self, argv: Sequence[str]) -> list[str]:
        """The command line that runs another one inside, as root."""
        namespaces = ["-m", "-u", "-i", "-n", "-p", "-C", "-r", "-w"]
        return ["nsenter", "-t", str(self.leader), *namespaces, "--", *argv]

    def run(
        self, argv: Sequence[str], *, stdin: str = "", timeout_s: float = 60.0,
        check: bool = True,
    ) -> Done:  # fmt: skip
        """Run a command inside, as root. Raises LabError when it fails and `check` is set."""
        return run_command(self.name, self.enter(argv), argv, stdin, timeout_s, check, _ENV)

    @property
    def ssh_options(self) -> list[str]:
        """What ssh must know to reach this lab, and nothing of this machine's configuration."""
        options = ["BatchMode=yes", f"UserKnownHostsFile={self.folder}/known_hosts",
                   "ConnectTimeout=10", "IdentitiesOnly=yes"]  # fmt: skip
        return ["-F", "none", *(word for option in options for word in ("-o", option))]

    @property
    def ssh_key(self) -> str:
        """The file with root's key."""
        return f"{self.folder}/key"

    def ssh_command(self, argv: Sequence[str] = ()) -> list[str]:
        """The command line that reaches root there by ssh, with the lab's key."""
        return ["ssh", *self.ssh_options, "-i", self.ssh_key, f"root@{self.address}", *argv]

    def ssh(self, argv: Sequence[str], *, timeout_s: float = 60.0, check: bool = True) -> Done:
        """Run a command by ssh; sshd gives it to a shell. Raises LabError as `run` does."""
        return run_command(self.name, self.ssh_command(argv), argv, "", timeout_s, check, None)

    def put(self, path: str, content: str, mode: int = 0o644) -> None:
        """Write a file of root's, and the folders that it lacks. Raises LabError."""
        self.run(["install", "-D", "-m", f"{mode:o}", "/dev/stdin", path], stdin=content)

    def copy(self, folder: Path, target: str) -> None:
        """Copy what is in a folder of this machine into one of the host's. Raises LabError."""
        self.run(["mkdir", "--parents", target])
        pack = ["tar", "--create", "--exclude=__pycache__", f"--directory={folder}", "."]
        unpack = self.enter(["tar", "--extract", "--no-same-owner", f"--directory={target}"])
        with subprocess.Popen(pack, stdout=subprocess.PIPE) as packer:
            done = subprocess.run(unpack, stdin=packer.stdout, env=_ENV, timeout=60, check=False)
        if packer.returncode or done.returncode:
            raise LabError(f"{folder} could not be copied to {target} on {self.name}")

    def unit_log(self, name: str) -> str:
        """What the journal has of a unit since boot."""
        return self.run(["journalctl", "--boot", "--no-pager", "-o", "cat", "-u", name]).stdout


def leader_of(keeper: int) -> int | None:
    """The PID 1 inside: the grandchild of who started it that is number 1 in its own namespace."""
    with contextlib.suppress(OSError):
        for nspawn in _children(keeper):
            for child in _children(nspawn):
                status = Path(f"/proc/{child}/status").read_text()
                numbers = next(line for line in status.splitlines() if line.startswith("NSpid:"))
                if len(numbers.split()) > 2 and numbers.split()[-1] == "1":
                    return child
    return None


def _children(pid: int) -> list[int]:
    return [int(child) for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def run_command(
    name: str, command: list[str], argv: Sequence[str], stdin: str, timeout_s: float,
    check: bool, env: dict[str, str] | None,
) -> Done:  # fmt: skip
    """Run a command line that runs `argv` on a host. Raises LabError, as `Host.run` does."""
    what = f"`{' '.join(argv)}` on {name}"
    try:
        done = subprocess.run(
            command, input=stdin, capture_output=True, text=True, errors="replace",
            timeout=timeout_s, check=False, env=env or dict(os.environ),
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        raise LabError(f"{what} did not end within {timeout_s:g} s") from None
    if check and done.returncode != 0:
        raise LabError(f"{what} ended with {done.returncode}: {done.stderr or done.stdout}")
    return done
