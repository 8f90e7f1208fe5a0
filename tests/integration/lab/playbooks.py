"""Playbooks, run against the hosts of a lab as an operator runs them."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.lab import Host, Lab
from tests.lab.lab import CHECKOUT, VAULT_PASSWORD

# What an installation writes to, and root's home, where Ansible's own leftovers would be.
_LISTED = ("/etc", "/opt", "/usr", "/var/lib", "/root")
# What systemd and apt keep for themselves there, whoever looks at the host.
_OWN = re.compile(r"^/(var/lib/(systemd|apt|dbus)|etc/(resolv\.conf|hostname|mtab))\b")


@dataclass(frozen=True, slots=True)
class Ran:
    """What a run printed, and how it ended."""

    returncode: int
    text: str

    @property
    def words(self) -> str:
        """The text in one line: YAML folds long messages."""
        return re.sub(r"\s+", " ", self.text)

    @property
    def changed(self) -> int:
        """The sum of the recap's changes."""
        return sum(int(count) for count in re.findall(r"\bchanged=(\d+)", self.text))


@dataclass(frozen=True, slots=True)
class Site:
    """A lab with an inventory, and what operators type."""

    lab: Lab
    inventory: Path

    @property
    def hosts(self) -> dict[str, Host]:
        """The hosts, by name."""
        return self.lab.hosts

    @property
    def password(self) -> Path:
        """The file with the vault's password."""
        return self.lab.folder / VAULT_PASSWORD

    def play(
        self, name: str, *options: str, inventory: Path | None = None, password: Path | None = None
    ) -> Ran:
        """Run `playbooks/NAME.yml` from the checkout."""
        programs = Path(sys.executable).parent
        env = {
            "PATH": f"{programs}:{os.environ['PATH']}",
            "HOME": os.environ["HOME"],
            "LANG": "C.UTF-8",
            "ANSIBLE_VAULT_PASSWORD_FILE": str(password or self.password),
        }
        done = subprocess.run(
            [programs / "ansible-playbook", f"--inventory={inventory or self.inventory}", *options,
             f"playbooks/{name}.yml"],
            cwd=CHECKOUT, env=env, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT, text=True, timeout=900, check=False,
        )  # fmt: skip
        return Ran(done.returncode, done.stdout)

    def files(self) -> dict[str, set[str]]:
        """All that is there, by host: name, kind, owner, mode, and for files size and time."""
        command = ["find", *_LISTED, "-xdev", "-type", "f", "-printf", "%p %u %m %s %T@\\n", "-o",
                   "-printf", "%p %u %m %y\\n"]  # fmt: skip
        return {
            name: {line for line in host.run(command).stdout.splitlines() if not _OWN.match(line)}
            for name, host in self.hosts.items()
        }
