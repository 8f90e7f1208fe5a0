"""A tool that a signal ends leaves no lock taken: its own end would wait for it."""

from __future__ import annotations

import subprocess
import sys

import pytest

PROGRAM = """
import os, queue, signal, threading, time
from tools.processes import exit_on_signals

exit_on_signals()
pool, (heard, asked) = queue.LifoQueue(), os.pipe()
number = getattr(signal, "{name}")

def send():
    while os.read(heard, 1):
        time.sleep(0.005)
        os.kill(os.getpid(), number)

threading.Thread(target=send, daemon=True).start()
for _ in range(50):
    os.write(asked, b"x")
    try:
        while True:
            pool.put(1)
            pool.get()
    except (KeyboardInterrupt, SystemExit) as error:
        if not pool.mutex.acquire(timeout=1):
            raise RuntimeError("the lock stayed taken") from error
        pool.mutex.release()
print("ended")
"""


@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM", "SIGHUP"])
def test_no_signal_leaves_the_lock_of_a_block_taken(name: str) -> None:
    program = PROGRAM.replace("{name}", name)
    heedful = ["env", "--default-signal=INT", sys.executable, "-c", program]
    done = subprocess.run(heedful, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (0, "ended\n"), done.stderr
