"""The site that Ansible makes of a lab: its playbooks, Molecule's scenarios, what its hosts say."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from tests.lab import Host, Lab
from tests.lab.host import Done
from tests.lab.lab import CHECKOUT, VAULT_PASSWORD
from tests.until import until

NODES = ("node1", "node2")
_BIN = Path(sys.executable).parent
MOLECULE = _BIN / "molecule"
_RAECTL = ["raectl", "--credentials=/etc/rae-control/credentials.json"]
_PROBE = (CHECKOUT / "playbooks/files/probe_ports.py").read_text(encoding="utf-8")
_ASK = (Path(__file__).with_name("ask.py")).read_text(encoding="utf-8")


@dataclass
class Site:
    """A lab with an inventory; what each scenario and playbook took, and what scenarios said."""

    lab: Lab
    inventory: Path
    times: dict[str, float] = field(default_factory=dict)
    said: dict[str, str] = field(default_factory=dict)

    def run(self, what: str, *argv: str, check: bool = True, timeout_s: float = 1800) -> Done:
        """A program of the environment, with this inventory; what it said when it must succeed."""
        started = time.monotonic()
        known = {
            "ANSIBLE_INVENTORY": str(self.inventory),
            "ANSIBLE_VAULT_PASSWORD_FILE": str(self.lab.folder / VAULT_PASSWORD),
            "PATH": f"{_BIN}:{os.environ['PATH']}",
            "LC_ALL": "C.UTF-8",  # Ansible refuses a locale that is not there
        }
        process = subprocess.Popen(
            argv, cwd=CHECKOUT, env={**os.environ, **known}, text=True, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.PIPE, start_new_session=True,
        )  # fmt: skip
        try:
            out, err = process.communicate(timeout=timeout_s)
        except (subprocess.TimeoutExpired, KeyboardInterrupt):
            os.killpg(process.pid, signal.SIGKILL)  # Molecule's playbook would go on without it
            raise
        done = Done(argv, process.returncode, out, err)
        self.times[what] = self.times.get(what, 0) + time.monotonic() - started
        assert not check or done.returncode == 0, done.stdout[-8000:] + done.stderr[-3000:]
        return done

    def scenario(self, name: str, verbosity: int = 0) -> str:
        """All of one of Molecule's scenarios; what it said."""
        # Molecule hands no -vvv on.
        words = ["env", f"ANSIBLE_VERBOSITY={verbosity}", str(MOLECULE), "test", "--scenario-name"]
        done = self.run(f"molecule {name}", *words, name)
        self.said[name] = done.stdout + done.stderr
        return self.said[name]

    def playbook(self, name: str, *words: str, check: bool = True) -> Done:
        """One of the playbooks."""
        return self.run(f"{name}.yml", "ansible-playbook", f"playbooks/{name}.yml", *words,
                        check=check)  # fmt: skip

    @property
    def control(self) -> Host:
        """The host that control runs on."""
        return self.lab.hosts["control"]

    @cached_property
    def variables(self) -> Mapping[str, Any]:
        """Control's variables, the vault's among them."""
        said = self.run("ansible-inventory", "ansible-inventory", "--host", "control")
        found: dict[str, Any] = json.loads(said.stdout)
        return found

    def tailnet(self, name: str) -> tuple[str, str]:
        """The addresses of a host in the tailnet, IPv4 and IPv6."""
        four, six = self.lab.hosts[name].run(["tailscale", "ip"]).stdout.split()
        return four, six

    def raectl(self, *words: str, stdin: str = "", timeout_s: float = 120) -> Any:
        """What raectl on control answers."""
        done = self.control.run([*_RAECTL, "--json", *words], stdin=stdin, timeout_s=timeout_s)
        return json.loads(done.stdout)

    def submit(self, *tasks: dict[str, Any]) -> list[str]:
        """Submit tasks; their ids."""
        told = self.raectl("submit", "--json-file=-", stdin=json.dumps({"tasks": list(tasks)}))
        return [task["task_id"] for task in told["tasks"]]

    def task(self, task_id: str) -> dict[str, Any]:
        """What control knows of a task."""
        told: dict[str, Any] = self.raectl("task", task_id)
        return told

    def until(self, task_id: str, state: str, timeout_s: float = 120) -> dict[str, Any]:
        """Wait until a task is in a state; the task."""

        def there() -> dict[str, Any]:
            seen = self.task(task_id)
            assert seen["state"] in {state, "waiting", "queued", "leased", "running"}, seen
            return seen if seen["state"] == state else {}

        found: dict[str, Any] = until(there, f"{task_id} {state}", timeout_s, every_s=0.5)
        return found

    def nodes(self) -> dict[str, str]:
        """The nodes that control shows, and their states."""
        return {node["node_id"]: node["state"] for node in self.raectl("nodes", "list")["nodes"]}

    def online(self, *names: str, timeout_s: float = 90) -> None:
        """Wait until control shows these nodes online, and no other."""
        wanted = dict.fromkeys(names, "online")
        what = f"online: {', '.join(names) or 'none'}"
        until(lambda: self._control_says(wanted), what, timeout_s, every_s=0.5)

    def _control_says(self, wanted: Mapping[str, str]) -> bool:
        done = self.control.run([*_RAECTL, "--json", "nodes", "list"], check=False)
        if done.returncode:
            return False
        said = json.loads(done.stdout)["nodes"]
        return {node["node_id"]: node["state"] for node in said} == wanted

    def probe(
        self, vantage: str, addresses: Iterable[str], ports: Iterable[int]
    ) -> set[tuple[str, int]]:
        """Which (address, port) answer a host of the lab: all ports of each are tried."""
        # By standard input: 65,535 ports are more than an argument may hold.
        program = f"import sys; sys.argv[1:] = [sys.stdin.readline()]\n{_PROBE}"
        asked, found = list(ports), set()
        for address in addresses:
            done = self.lab.hosts[vantage].run(
                ["python3", "-c", program], timeout_s=580,
                stdin=f"{json.dumps({'targets': [[address, asked]]})}\n",
            )  # fmt: skip
            found |= {(where, port) for where, port, said in json.loads(done.stdout)["answers"]
                      if said == "open"}  # fmt: skip
        return found

    def from_operator(self, *calls: dict[str, Any]) -> list[Any]:
        """HTTP calls made by host `operator` over the tailnet, with RAE's own token."""
        four, _ = self.tailnet("control")
        asked = {
            "url": f"http://{four}:8080", "calls": list(calls),
            "token": self.variables["vault_control_submit_token"],
        }  # fmt: skip
        host = self.lab.hosts["operator"]
        done = host.run(["python3", "-c", _ASK], stdin=json.dumps(asked), timeout_s=300)
        told: list[Any] = json.loads(done.stdout)
        return told

    def eventually(self, what: str, condition: Callable[[], Any], timeout_s: float = 60) -> Any:
        """Wait for something that takes a host to answer."""
        return until(condition, what, timeout_s, every_s=0.5)
