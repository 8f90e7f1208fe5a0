#!/usr/bin/env python3
"""Kills all processes of the model runner, and says `ok` when they are gone; systemd restarts it.

Runs as root, once per connection to /run/rae-task/kill-ollama.sock (rae-ollama-kill@.service).
"""

import socket
import sys
import time
from pathlib import Path

UNIT = "/sys/fs/cgroup/rae.slice/rae-ollama.service"
WAIT_S = 3.0


def pids(unit: str) -> "set[str]":
    """What runs in the unit now; nothing where there is none."""
    try:
        return {
            pid
            for file in Path(unit).rglob("cgroup.procs")
            for pid in file.read_text(encoding="ascii").split()
        }
    except OSError:
        return set()


def answer(asked: bytes, unit: str = UNIT) -> str:
    """Kill, or say why not."""
    if asked != b"kill\n":
        return "Only the model runner can be killed here; send `kill` and a newline"
    before = pids(unit)
    try:
        Path(unit, "cgroup.kill").write_text("1", encoding="ascii")
    except FileNotFoundError:
        return "ok"  # it does not run
    except OSError as error:
        return f"rae-ollama cannot be killed: {error.strerror}; look at rae-ollama-kill@.service"
    end = time.monotonic() + WAIT_S
    while before & pids(unit):
        if time.monotonic() > end:
            return "rae-ollama was killed, and does not end; look at the GPU's driver (dmesg)"
        time.sleep(0.005)
    return "ok"


def main() -> int:
    """One question, one answer."""
    with socket.socket(fileno=sys.stdin.fileno()) as agent:
        agent.settimeout(2.0)
        try:
            agent.sendall(answer(agent.recv(64)).encode() + b"\n")
        except OSError:
            return 1  # it says nothing, or is gone
    return 0


if __name__ == "__main__":
    sys.exit(main())
