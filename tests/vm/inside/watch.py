"""Runs in the guest: how long from the first input event until processes are gone.

`watch.py TYPES PID…`; TYPES are evdev's, as "1,2,3" (keys, relative, absolute). It prints `ready`,
then one line of JSON: when the kernel stamped the event, when the last of the processes had ended
(both in seconds of CLOCK_MONOTONIC), and the device.
"""

from __future__ import annotations

import fcntl
import json
import os
import select
import struct
import sys
import time
from pathlib import Path

EVENT = struct.Struct("llHHi")
EVIOCSCLOCKID = 0x400445A0
PATIENCE_S = 60.0
LOOK_S = 0.02  # for devices that are plugged in meanwhile


def opened(known: dict[int, str]) -> dict[int, str]:
    """All devices, by descriptor: the known ones and those that came since."""
    for path in Path("/dev/input").glob("event*"):
        if path.name not in known.values():
            device = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
            fcntl.ioctl(device, EVIOCSCLOCKID, struct.pack("i", time.CLOCK_MONOTONIC))
            known[device] = path.name
    return known


def first_event(types: set[int]) -> tuple[float, str]:
    """When the first event came, and from where."""
    devices = opened({})
    print("ready", flush=True)
    end = time.monotonic() + PATIENCE_S
    while time.monotonic() < end:
        for device in select.select(list(devices), [], [], LOOK_S)[0]:
            try:
                data = os.read(device, 64 * EVENT.size)
            except OSError:  # pulled out
                os.close(device)
                del devices[device]
                continue
            for seconds, micros, kind, _code, _value in EVENT.iter_unpack(data):
                if kind in types:
                    return seconds + micros / 1e6, devices[device]
        opened(devices)
    sys.exit("no input event came")


def main() -> None:
    """One measurement."""
    types = {int(word) for word in sys.argv[1].split(",")}
    alive = {os.pidfd_open(int(pid)) for pid in sys.argv[2:]}
    event, device = first_event(types)
    end = time.monotonic() + PATIENCE_S
    while alive:
        gone = select.select(list(alive), [], [], max(0.0, end - time.monotonic()))[0]
        if not gone:
            sys.exit(f"{len(alive)} processes still run {PATIENCE_S:.0f} s after the event")
        alive -= set(gone)
    print(json.dumps({"event": event, "gone": time.monotonic(), "device": device}), flush=True)


main()
