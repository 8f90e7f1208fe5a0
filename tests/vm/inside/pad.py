"""Runs in the guest: a device of uinput's, which does what standard input says, a line at a time.

`pad.py pad` is a gamepad, `pad.py touch` a touch screen; it is gone when the input ends.
`key BTN_SOUTH 1` and `abs ABS_X 20000` are one event and its report; after `noise ABS_X 9000` that
axis trembles up to there.
"""

from __future__ import annotations

import itertools
import sys
import threading
from typing import Any

from evdev import AbsInfo, UInput, ecodes

_STICK = AbsInfo(value=0, min=-32768, max=32767, fuzz=16, flat=128, resolution=0)
_SCREEN = AbsInfo(value=0, min=0, max=4095, fuzz=0, flat=0, resolution=0)
_CAN: dict[str, dict[int, Any]] = {
    "pad": {
        ecodes.EV_KEY: [ecodes.BTN_SOUTH, ecodes.BTN_EAST, ecodes.BTN_START, ecodes.BTN_TL],
        ecodes.EV_ABS: [(getattr(ecodes, f"ABS_{it}"), _STICK) for it in ("X", "Y", "RX", "RY")],
    },
    "touch": {
        ecodes.EV_KEY: [ecodes.BTN_TOUCH],
        ecodes.EV_ABS: [(ecodes.ABS_X, _SCREEN), (ecodes.ABS_Y, _SCREEN)],
    },
}


def make_noise(pad: UInput, code: int, most: int, over: threading.Event) -> None:
    """Let an axis tremble, ten times a second, until it is over."""
    values = itertools.cycle((most, 200, -300, most + 90, 0))
    while not over.wait(0.1):
        pad.write(ecodes.EV_ABS, code, next(values))
        pad.syn()


def main() -> None:
    """One device."""
    kind = sys.argv[1]
    with UInput(
        _CAN[kind], name=f"Lab {kind}", vendor=0x045E, product=0x028E, version=0x110
    ) as pad:
        print("ready", pad.device.path, flush=True)
        over = threading.Event()
        for line in sys.stdin:
            kind, code, value = line.split()
            if kind == "noise":
                noise = (pad, getattr(ecodes, code), int(value), over)
                threading.Thread(target=make_noise, args=noise).start()
            else:
                pad.write(getattr(ecodes, f"EV_{kind.upper()}"), getattr(ecodes, code), int(value))
                pad.syn()
            print("done", flush=True)
        over.set()


main()
