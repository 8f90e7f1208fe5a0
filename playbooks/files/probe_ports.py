#!/usr/bin/env python3
"""Probes TCP ports from here: `probe_ports.py JSON` prints `answers` and `findings` as JSON.

JSON: `targets`, [[address, [port, …]], …], and for findings `control` with `tailnet` (its address
there), `api` (a port), `allowed` (ports open to the tailnet) and `vantage` (node or outside).
Answers: [address, port, "open" | "refused" | "silent"]. Standard library, bounded in time.
"""

import errno
import json
import selectors
import socket
import sys
import time

AT_ONCE, WAIT_S = 400, 1.5


def started(address, port):
    """A connection on its way."""
    family = socket.AF_INET6 if ":" in address else socket.AF_INET
    line = socket.socket(family, socket.SOCK_STREAM)
    line.setblocking(False)
    return line, line.connect_ex((address, port))


def probed(targets):
    """The answer of each target, a few hundred at a time."""
    waiting, found = selectors.DefaultSelector(), []
    targets = list(reversed(targets))
    while targets or waiting.get_map():
        while targets and len(waiting.get_map()) < AT_ONCE:
            address, port = targets.pop()
            line, code = started(address, port)
            if code in (0, errno.EINPROGRESS):
                waiting.register(
                    line, selectors.EVENT_WRITE, (address, port, time.monotonic() + WAIT_S)
                )
            else:
                line.close()
                found.append([address, port, "refused" if code == errno.ECONNREFUSED else "silent"])
        ready = {key.fileobj for key, _ in waiting.select(0.05)}
        for key in list(waiting.get_map().values()):
            address, port, end = key.data
            if key.fileobj in ready:
                code = key.fileobj.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR)
                answer = {0: "open", errno.ECONNREFUSED: "refused"}.get(code, "silent")
            elif time.monotonic() > end:
                answer = "silent"
            else:
                continue
            waiting.unregister(key.fileobj)
            key.fileobj.close()
            found.append([address, port, answer])
    return found


def findings(answers, control):
    """Lines for playbooks/verify.yml: a node reaches the allowed ports alone, others none."""
    inside = control["vantage"] == "node"
    allowed = {(control["tailnet"], int(port)) for port in control["allowed"]} if inside else set()
    found = {(address, port) for address, port, answer in answers if answer == "open"}
    wrong = ", ".join(f"{address} {port}" for address, port in sorted(found - allowed))
    yield {
        "check": "A14 nodes cannot reach database ports"
        if inside
        else "no port of control answers outside",
        "ok": not wrong,
        "what": f"open: {wrong}"
        if wrong
        else f"{len(answers)} ports probed, only allowed ones open",
        "fix": "playbooks/provision-control.yml -t firewall; on control: nft list table inet rae",
    }
    if inside:
        reached = (control["tailnet"], int(control["api"])) in found
        yield {
            "check": "the API answers the node",
            "ok": reached,
            "what": "open" if reached else "no answer",
            "fix": "on the node: tailscale ping control; on control: journalctl -u rae-control",
        }


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    answers = probed(
        [(address, int(port)) for address, ports in asked["targets"] for port in ports]
    )
    control = asked.get("control")
    print(
        json.dumps(
            {"answers": answers, "findings": [*findings(answers, control)] if control else []}
        )
    )
