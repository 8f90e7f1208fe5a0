"""Which events of an input device are a person's. Pure: numbers in, verdicts out.

Numbers of the kernel's: include/uapi/linux/input-event-codes.h.
"""

from __future__ import annotations

TYPE_CHECKING = False
if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Mapping

    # Seconds, microseconds, type, code, value, as evdev reads them.
    Event = tuple[int, int, int, int, int]
    # Value, least, most, fuzz, flat, resolution: struct input_absinfo.
    AbsInfo = tuple[int, int, int, int, int, int]

KEYBOARD, POINTER, GAMEPAD, BUTTONS, SENSOR = (
    "keyboard", "pointer", "gamepad", "buttons", "sensor",
)  # fmt: skip
HANDS = frozenset({KEYBOARD, POINTER})  # what a login or an unlock is typed with

EV_SYN, EV_KEY, EV_REL, EV_ABS, EV_SW = 0, 1, 2, 3, 5
_SYN_DROPPED = 3
_REL_X, _REL_Y = _ABS_X, _ABS_Y = 0, 1
# A lid, a tablet's keyboard, a dock. Not the plugs: a monitor that goes to sleep pulls one.
_SWITCHES = frozenset({0x00, 0x01, 0x05})
_ACCELEROMETER = 0x06
_BTN_LEFT, _BTN_TOUCH = 0x110, 0x14A
_PAD_BUTTONS, _TOOLS, _KEYS = range(0x120, 0x140), range(0x140, 0x150), range(1, 128)
_FEWEST_KEYS = 10
_AXES = {0: "X", 1: "Y", 2: "Z", 3: "RX", 4: "RY", 5: "RZ", 6: "THROTTLE", 7: "RUDDER",
         8: "WHEEL", 9: "GAS", 10: "BRAKE", 16: "HAT0X", 17: "HAT0Y"}  # fmt: skip
_ZONE = 1 / 8  # of an axis' way from end to end: a quarter of a stick's deflection
_WHEEL_ZONE = 1 / 64  # of a steering wheel's way: 14 degrees of 900
_WHEEL_NOISE = 4  # zones: no wheel that rests goes so far
_JITTER = 2  # counts of a mouse's step that its sensor may make up
_DRIFT = 50.0  # counts that such steps may add up to


def kind_of(codes: Mapping[int, Collection[int]], properties: Collection[int]) -> str:
    """What a device is. `codes`: by event type; `properties`: INPUT_PROP_*."""
    keys = frozenset(codes.get(EV_KEY, ()))
    if _ACCELEROMETER in properties:  # a pad's tilt: it never rests
        return SENSOR
    points = _REL_X in codes.get(EV_REL, ()) or keys & {_BTN_LEFT, _BTN_TOUCH}
    if points or keys.intersection(_TOOLS):
        return POINTER
    if keys.intersection(_PAD_BUTTONS):
        return GAMEPAD
    if len(keys.intersection(_KEYS)) >= _FEWEST_KEYS:
        return KEYBOARD
    return GAMEPAD if codes.get(EV_ABS) else BUTTONS


class Axis:
    """A stick, a pedal, or a mouse's motion, and what is known of its noise.

    It counts when it has moved by more than `zone` from where it last counted: a resting stick
    does not, wherever it rests. `far`: from where to where a person alone moves it, together with
    another axis; with `steers` alone. `quiet`: values that do not count since the calibration.
    """

    __slots__ = ("anchor", "began", "far", "high", "last", "low", "name", "quiet", "steers", "zone")

    def __init__(
        self, name: str, value: float, zone: float, far: float, *, steers: bool = False
    ) -> None:
        self.name, self.anchor, self.zone = name, value, zone
        self.far, self.steers = far, steers
        self.began = self.last = float("-inf")
        self.low = self.high = value
        self.quiet: tuple[float, float] | None = None


class Device:
    """An input device. `absolutes`: by code, as the kernel describes them."""

    __slots__ = ("axes", "kind", "motion", "name", "seat")

    def __init__(
        self, name: str, seat: str, kind: str, absolutes: Mapping[int, AbsInfo]
    ) -> None:  # fmt: skip
        self.name, self.seat, self.kind = name, seat, kind
        self.motion = Axis(f"motion of '{name}'", 0, 0, _DRIFT)
        self.axes = {}
        if kind == GAMEPAD:
            for code, (value, least, most, fuzz, flat, _) in absolutes.items():
                way = most - least
                # A wheel: who drives with cruise control uses nothing else, and turns it a little.
                steers = code == _ABS_X and _ABS_Y not in absolutes
                zone = max(way * (_WHEEL_ZONE if steers else _ZONE), fuzz, flat)
                far = _WHEEL_NOISE * zone if steers else way / 2
                title = f"axis {_AXES.get(code, code)} of '{name}'"
                self.axes[code] = Axis(title, value, zone, far, steers=steers)


class Activity:
    """All devices together.

    Calibration: an axis that moves again and again for `calibrate_s` seconds, with no break of
    `gap_s`, while no key, button or pointer is used, is noise. A narrow one is ignored within the
    band where it was seen, so that a real push still counts; a wide one is ignored altogether, but
    only if nothing else moves: who plays uses two axes, or a button. A steering wheel that is
    turned far is no noise at all.
    """

    def __init__(self, calibrate_s: float = 600.0, gap_s: float = 20.0) -> None:
        self._calibrate_s, self._gap_s = calibrate_s, gap_s
        self._firm_at = float("-inf")  # the last input that is no noise
        self._suspects: list[Axis] = []
        self.ignored: list[str] = []

    def used(self, device: Device, events: Iterable[Event], now: float) -> bool:
        """Whether a person used it. `now`: seconds of a clock that never steps."""
        counts = False
        for _, _, kind, code, value in events:
            if kind == EV_REL and code in (_REL_X, _REL_Y) and abs(value) <= _JITTER:
                counts |= self._moved(device.motion, device.motion.anchor + value, now)
            elif kind == EV_ABS and code in device.axes:
                counts |= self._moved(device.axes[code], value, now)
            elif (
                kind in (EV_KEY, EV_REL, EV_ABS)
                or (kind == EV_SW and code in _SWITCHES)
                or (kind == EV_SYN and code == _SYN_DROPPED)
            ):
                self._firm_at, counts = now, True
        return counts

    def forget(self, device: Device) -> None:
        """It was unplugged; when it comes back, it is a new one."""
        gone = [device.motion, *device.axes.values()]
        self._suspects = [axis for axis in self._suspects if axis not in gone]
        names = [axis.name for axis in gone]
        self.ignored = [name for name in self.ignored if name not in names]

    def _moved(self, axis: Axis, value: float, now: float) -> bool:
        if axis.quiet is not None and axis.quiet[0] <= value <= axis.quiet[1]:
            axis.anchor = value
            return False
        if abs(value - axis.anchor) <= axis.zone:
            return False
        axis.anchor = value
        if now - axis.last > self._gap_s or axis.began <= self._firm_at:
            axis.began, axis.low, axis.high = now, value, value
        axis.last = now
        axis.low, axis.high = min(axis.low, value), max(axis.high, value)
        self._calibrate(axis, now)
        return True

    def _calibrate(self, axis: Axis, now: float) -> None:
        if axis not in self._suspects:
            self._suspects.append(axis)
        moving = [one for one in self._suspects if now - one.last <= self._gap_s]
        self._suspects = moving
        far = [one for one in moving if one.high - one.low >= one.far]
        if far and (len(moving) > 1 or axis.steers):
            self._firm_at = now  # two at once, one of them pushed far, or a wheel: a person
        elif now - axis.began >= self._calibrate_s:
            wide = axis.high - axis.low >= axis.far or axis.zone == 0
            band = axis.low - axis.zone, axis.high + axis.zone
            axis.quiet = (float("-inf"), float("inf")) if wide else band
            self._suspects.remove(axis)
            if axis.name not in self.ignored:
                self.ignored.append(axis.name)
