"""A host of the lab with a node's users, folders and units, and a stand-in for the supervisor."""

from __future__ import annotations

import json
import subprocess
from collections.abc import Sequence
from pathlib import Path
from textwrap import dedent
from types import TracebackType
from typing import Any

from tests.lab import Host
from tests.lab.image import PYTHON
from tests.lab.lab import CHECKOUT
from tests.lab.libraries import libraries
from tests.lab.node_files import SOCKETS, unit_files
from tests.until import until

CPU, GPU, KILL = (f"/run/rae-task/{name}.sock" for name in ("cpu", "gpu", "kill"))
AGENT_USER = "rae-node"
_RELEASE = "/opt/rae-node/releases/test"
PACKAGES = f"{_RELEASE}/lib/python{PYTHON}/site-packages"
BIN = "/opt/rae-node/current/bin/python"

# Standard input to a socket, and what it says to standard output; ends when the other side does.
_RELAY = """
import os, socket, sys, threading
peer = socket.socket(socket.AF_UNIX)
peer.connect(sys.argv[1])
def said():
    while data := peer.recv(65536):
        os.write(1, data)
    os._exit(0)
reader = threading.Thread(target=said)
reader.start()
try:
    while data := os.read(0, 65536):
        peer.sendall(data)
    peer.shutdown(socket.SHUT_WR)
except OSError:
    pass
reader.join()
"""


def install(host: Host) -> None:
    """What the role will do."""
    for path, content in unit_files().items():
        host.put(path, content)
    standin = Path(__file__).with_name("standin.py").read_text(encoding="utf-8")
    host.put("/opt/rae-node/agent/supervisor.py", standin)
    ollama = Path(__file__).with_name("ollama.py").read_text(encoding="utf-8")
    host.put("/opt/rae-node/ollama/bin/ollama", ollama, 0o755)
    # systemd verifies that a unit's program is there.
    host.run(["mkdir", "--parents", "/opt/rae-node/current/bin"])
    host.run(["ln", "-s", "/usr/bin/python3", BIN])
    host.run(["systemd-sysusers"])
    host.run(["systemd-tmpfiles", "--create", "/etc/tmpfiles.d/rae-node.conf"])
    host.run(["systemctl", "daemon-reload"])
    host.run(["systemctl", "enable", "--quiet", "--now", *SOCKETS])


def install_release(host: Host, *names: str) -> None:
    """Our packages of these names and their libraries, as the release in use."""
    host.copy(libraries(), PACKAGES)
    for name in names:
        host.copy(CHECKOUT / "services" / name / "src", PACKAGES)
    host.put(f"{_RELEASE}/pyvenv.cfg", "home = /usr/bin\ninclude-system-site-packages = false\n")
    host.run(["mkdir", f"{_RELEASE}/bin"])
    host.run(["ln", "-s", "/usr/bin/python3", f"{_RELEASE}/bin/python"])
    host.run(["rm", "--recursive", "/opt/rae-node/current"])
    host.run(["ln", "-s", _RELEASE, "/opt/rae-node/current"])


def as_user(user: str, argv: Sequence[str]) -> list[str]:
    """The command line that runs another one as a user of the host."""
    return ["setpriv", f"--reuid={user}", f"--regid={user}", "--init-groups", *argv]


def settings(host: Host, unit: str) -> dict[str, str]:
    """What systemd holds of a unit."""
    shown = host.run(["systemctl", "show", unit]).stdout
    return dict(line.split("=", 1) for line in shown.splitlines() if "=" in line)


def relay(socket: str) -> list[str]:
    """The command line of a client of a socket."""
    return ["python3", "-c", _RELAY, socket]


class Task:
    """One connection of the agent's, and so one task's unit; use it as a context manager."""

    def __init__(self, host: Host, socket: str = CPU, user: str = AGENT_USER) -> None:
        self._host = host
        self._command = host.enter(as_user(user, relay(socket)))

    def __enter__(self) -> Task:
        pipe = subprocess.PIPE
        self._relay = subprocess.Popen(self._command, stdin=pipe, stdout=pipe, text=True)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:  # fmt: skip
        self.close()

    def tell(self, python: str) -> dict[str, Any]:
        """Run Python in the unit's main process; what it put into `told`, and the unit's name."""
        where = "told['cgroup'] = open('/proc/self/cgroup').read().split('::')[1].strip()\n"
        stdin = self._relay.stdin
        assert stdin is not None
        stdin.write(json.dumps(where + dedent(python)) + "\n")
        stdin.flush()
        line = self.reads()
        assert line, f"nothing came back; the journal has:\n{self._journal()}"
        told: dict[str, Any] = json.loads(line)
        self.cgroup = Path(f"/proc/{self._host.leader}/root/sys/fs/cgroup{told['cgroup']}")
        return told

    def reads(self) -> str:
        """The next line from the other side; empty when it has hung up."""
        assert self._relay.stdout is not None
        return self._relay.stdout.readline()

    @property
    def unit(self) -> str:
        """The name of the unit."""
        return self.cgroup.name

    def processes(self) -> int:
        """How many processes the unit has."""
        return sum(len(file.read_text().split()) for file in self.cgroup.rglob("cgroup.procs"))

    def alive(self) -> bool:
        """Whether any process of the unit lives."""
        try:
            return "populated 1" in (self.cgroup / "cgroup.events").read_text()
        except OSError:  # the cgroup is gone, maybe while we read
            return False

    def wait_gone(self) -> None:
        """Wait until no process of the unit lives; how long that takes, `make bench` measures."""
        until(lambda: not self.alive(), f"all of {self.unit} is gone")

    def close(self) -> None:
        """Hang up."""
        assert self._relay.stdin is not None and self._relay.stdout is not None
        self._relay.stdin.close()
        self._relay.wait(20)
        self._relay.stdout.close()

    def _journal(self) -> str:
        return self._host.run(["journalctl", "--no-pager", "-n", "30"]).stdout
