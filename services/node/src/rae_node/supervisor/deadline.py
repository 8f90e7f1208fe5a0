"""A deadline on CLOCK_BOOTTIME that the kernel keeps. Standard library only.

Two timers: a timerfd wakes the supervisor at the deadline, and a moment later the kernel kills the
supervisor, with which its task ends, should it be stopped or busy. Neither is an alarm clock
(CLOCK_BOOTTIME_ALARM): a machine that sleeps is not woken up, and both fire when it wakes up.
"""

from __future__ import annotations

import ctypes
import os
import signal

CLOCK_BOOTTIME = 7
GRACE_S = 0.25  # what a supervisor that runs needs to see the deadline and send the first kill
_ABSOLUTE = 1  # TFD_TIMER_ABSTIME and TIMER_ABSTIME
_libc = ctypes.CDLL(None, use_errno=True)


class _SignalEvent(ctypes.Structure):
    """struct sigevent; its size is fixed at 64 bytes."""

    _fields_ = (
        ("value", ctypes.c_void_p),
        ("signo", ctypes.c_int),
        ("notify", ctypes.c_int),
        ("rest", ctypes.c_char * 48),
    )


class _TimerSpec(ctypes.Structure):
    """struct itimerspec: interval and value, each seconds and nanoseconds."""

    _fields_ = tuple((name, ctypes.c_long) for name in ("every_s", "every_ns", "s", "ns"))


class DeadlineTimer:
    """`file` becomes readable at the deadline; this process is killed `GRACE_S` later.

    Raises OSError where the kernel has no such timer.
    """

    def __init__(self) -> None:
        self.file = _checked(_libc.timerfd_create(CLOCK_BOOTTIME, os.O_NONBLOCK | os.O_CLOEXEC))
        event, self._kill = _SignalEvent(signo=signal.SIGKILL, notify=0), ctypes.c_void_p()
        created = _libc.timer_create(CLOCK_BOOTTIME, ctypes.byref(event), ctypes.byref(self._kill))
        _checked(created)

    def set(self, moment: float) -> None:
        """Move the deadline to a moment, in seconds on CLOCK_BOOTTIME."""
        wake, kill = _at(moment), _at(moment + GRACE_S)
        _checked(_libc.timerfd_settime(self.file, _ABSOLUTE, ctypes.byref(wake), None))
        _checked(_libc.timer_settime(self._kill, _ABSOLUTE, ctypes.byref(kill), None))

    def spare(self) -> None:
        """Everything was sent a kill: this process goes on."""
        _checked(_libc.timer_settime(self._kill, 0, ctypes.byref(_at(0.0)), None))

    def seen(self) -> None:
        """Take note of the timerfd, or it would wake at once again."""
        try:
            os.read(self.file, 8)
        except BlockingIOError:  # it was moved after it had fired
            return


def _at(moment: float) -> _TimerSpec:
    whole = int(moment)
    return _TimerSpec(0, 0, whole, int((moment - whole) * 1e9))


def _checked(result: int) -> int:
    if result < 0:
        number = ctypes.get_errno()
        raise OSError(number, os.strerror(number))
    return result
