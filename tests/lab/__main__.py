"""`python -m tests.lab build | build-vm | up [HOST…] | shell HOST [COMMAND…]`, `… inventory | key |
down`.

Root may. `up` writes an inventory for Ansible, and leaves a process that owns the lab; `down` ends
that one, and removes what dead owners left.
"""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

from tests.lab import image, ollama, preflight, tailnet, vm_states
from tests.lab.host import Host
from tests.lab.lab import CHECKOUT, INVENTORY, STATE, VAULT_PASSWORD, Lab, owned, sweep
from tests.lab.preflight import LabError
from tests.lab.tailnet import Tailnet
from tools import wheelhouse
from tools.devmesh import wait_until
from tools.processes import exit_on_signals, is_alive

_UP = "the lab is up"
_HOSTS = ["control", "node1", "node2", "outsider"]


def _say(line: str) -> None:
    # Who reads `keep` may be gone, with the pipe: the lab stays.
    with contextlib.suppress(BrokenPipeError):
        print(line, flush=True)


def _ours() -> list[dict[str, object]]:
    mine = [lab for lab in owned() if lab["kept"] and lab["checkout"] == str(CHECKOUT)]
    return [lab for lab in mine if _keeps(int(str(lab["pid"])))]


def _keeps(pid: int) -> bool:
    # The note may be a dead owner's, and the number somebody else's by now.
    with contextlib.suppress(OSError):
        return b"tests.lab\0keep" in Path(f"/proc/{pid}/cmdline").read_bytes()
    return False


def _ended(pid: int) -> bool:
    return not is_alive(pid)


def keep(hosts: list[str]) -> int:
    """Own a lab until a signal comes."""
    exit_on_signals()
    with Lab(_say, kept=True) as lab:
        lab.boot(*hosts)
        file = lab.write_inventory()
        _say(f"inventory: {file}")
        _say(f"to use it: export ANSIBLE_INVENTORY={file}")
        _say(f"           export ANSIBLE_VAULT_PASSWORD_FILE={lab.folder / VAULT_PASSWORD}")
        _say(_UP)
        signal.pause()
    return 0


def up(hosts: list[str]) -> int:
    """Start `keep`, and come back when its hosts run."""
    exit_on_signals()
    if _ours():
        raise LabError("This checkout's lab is up already; `down` ends it")
    started = time.monotonic()
    command = [sys.executable, "-m", "tests.lab", "keep", *hosts]
    keeper = subprocess.Popen(
        command, cwd=CHECKOUT, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT, text=True, start_new_session=True,
    )  # fmt: skip
    assert keeper.stdout is not None
    try:
        for line in keeper.stdout:
            if line.strip() == _UP:
                _say(f"{_UP}, after {time.monotonic() - started:.0f} s")
                return 0
            _say(line.rstrip())
    except BaseException:
        keeper.terminate()
        keeper.wait(60)
        raise
    return keeper.wait()


def _folder() -> Path:
    for lab in _ours():
        return STATE / str(lab["number"])
    raise LabError("This checkout has no lab; `python -m tests.lab up` makes one")


def shell(name: str, argv: list[str]) -> int:
    """Become an ssh to a host of this checkout's lab."""
    try:
        address, address6, keeper = json.loads((_folder() / f"{name}.json").read_text())
    except FileNotFoundError:
        raise LabError(f"This checkout's lab has no host {name}; `up {name}` makes one") from None
    command = Host(name, address, address6, keeper, _folder()).ssh_command(argv)
    os.execvp(command[0], command)


def key(*, reusable: bool) -> int:
    """Print a key for the tailnet of this checkout's lab."""
    folder = _folder() / "tailnet"
    _say(Tailnet((folder / "url").read_text(), folder, folder).key(reusable=reusable))
    return 0


def where() -> int:
    """Print where the inventory of this checkout's lab is."""
    _say(str(_folder() / INVENTORY))
    return 0


def build() -> int:
    """Make what labs are made of, and what their hosts install."""
    _say(str(image.build(_say)))
    _say(str(image.build(_say, image.DESKTOPS)))
    _say(str(tailnet.build(_say)))
    _say(str(ollama.build(_say).archive))
    return wheelhouse.main([image.PYTHON])


def build_vm() -> int:
    """Make the virtual machine that tests begin with: booted, with the agent installed."""
    preflight.check_vm()
    _say(str(vm_states.installed(_say)))
    return 0


def down() -> int:
    """End this checkout's lab, and remove what dead owners left."""
    for lab in _ours():
        keeper = int(str(lab["pid"]))
        os.kill(keeper, signal.SIGTERM)
        wait_until(partial(_ended, keeper), 60, f"process {keeper} ends")
        _say(f"lab {lab['number']}: gone")
    for number in sweep(preflight.check()):
        _say(f"lab {number}: its owner was dead; gone")
    return 0


def main() -> int:
    """One verb; 0 done, 1 could not be done."""
    parser = argparse.ArgumentParser(prog="python -m tests.lab", description=__doc__)
    verbs = parser.add_subparsers(dest="verb", required=True)
    verbs.add_parser("build", help="build the image and what hosts install, if it is not there")
    verbs.add_parser("build-vm", help="build the virtual machine, if it is not there")
    for verb in ("up", "keep"):
        verbs.add_parser(verb).add_argument("hosts", nargs="*", default=_HOSTS)
    keys = verbs.add_parser("key", help="print a key for the tailnet, for one machine")
    keys.add_argument("--reusable", action="store_true", help="… or for any number")
    verbs.add_parser("inventory", help="print where the inventory is")
    shells = verbs.add_parser("shell", help="a shell, or a command, on a host")
    shells.add_argument("host")
    shells.add_argument("argv", nargs=argparse.REMAINDER)
    verbs.add_parser("down", help="end it")
    asked = parser.parse_args()
    try:
        if asked.verb == "build-vm":
            return build_vm()
        preflight.check()
        if asked.verb == "build":
            return build()
        if asked.verb == "key":
            return key(reusable=asked.reusable)
        if asked.verb == "inventory":
            return where()
        if asked.verb in {"up", "keep"}:
            return (up if asked.verb == "up" else keep)(asked.hosts)
        return shell(asked.host, asked.argv) if asked.verb == "shell" else down()
    except LabError as error:
        print(error, file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
