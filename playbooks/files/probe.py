#!/usr/bin/env python3
"""Which TCP ports answer from here: `probe.py JSON`; [[address, port, answer], …] as JSON.

JSON: [[address, [port, …]], …]. Answers: open, refused, silent. Standard library, bounded in time.
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


if __name__ == "__main__":
    asked = json.loads(sys.argv[1])
    targets = [(address, int(port)) for address, ports in asked for port in ports]
    print(json.dumps(probed(targets)))
