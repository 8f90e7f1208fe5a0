"""Programs that several tests run on a host."""

from __future__ import annotations

REACH = "import socket, sys; socket.create_connection((sys.argv[1], 22), 10)"
# 20 processes in 3 sessions that ignore all signals but SIGKILL.
CROWD = """
import os, signal, time
for number in range(20):
    if os.fork() == 0:
        signal.signal(signal.SIGTERM, signal.SIG_IGN)
        signal.signal(signal.SIGHUP, signal.SIG_IGN)
        if number % 7 == 0:
            os.setsid()
        if os.fork():
            os._exit(0)
        os.closerange(0, 3)
        time.sleep(600)
        os._exit(0)
"""
