#!/usr/bin/env python3
"""Kills all processes of one task's unit: its name comes as one line, `ok` or a sentence goes back.

Runs as root, once per connection to /run/rae-task/kill.sock (rae-task-kill@.service).
"""

import re
import socket
import sys
from pathlib import Path

RAE_SLICE = "/sys/fs/cgroup/rae.slice"
# No slash and nothing before `rae-task`: no path out of the slice, no unit but a task's.
UNIT = re.compile(rb"(rae-task(?:-gpu)?@[0-9A-Za-z_.:-]+\.service)\n")
LONGEST = 256  # NAME_MAX and the end of the line


def answer(asked: bytes, rae_slice: str = RAE_SLICE) -> str:
    """Kill what was asked for, or say why not."""
    match = UNIT.fullmatch(asked) if len(asked) <= LONGEST else None
    if match is None:
        return "Only tasks can be killed here; send the name of one rae-task unit and a newline"
    name = match[1].decode("ascii")
    try:
        Path(rae_slice, name, "cgroup.kill").write_text("1", encoding="ascii")
    except FileNotFoundError:
        return f"{name} does not run"
    except OSError as error:
        return f"{name} cannot be killed: {error.strerror}; look at rae-task-kill@.service"
    return "ok"


def main() -> int:
    """One question, one answer."""
    with socket.socket(fileno=sys.stdin.fileno()) as agent:
        agent.settimeout(2.0)
        asked = b""
        try:
            while b"\n" not in asked and len(asked) <= LONGEST:
                piece = agent.recv(LONGEST + 1)
                if not piece:
                    break
                asked += piece
            agent.sendall(answer(asked).encode() + b"\n")
        except OSError:
            return 1  # it says nothing, or is gone
    return 0


if __name__ == "__main__":
    sys.exit(main())
