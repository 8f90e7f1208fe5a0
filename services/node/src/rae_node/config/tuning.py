"""Every period and bound that is not in the owner's files, and `--set` for all of them."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, fields, replace

from rae_node.errors import ConfigError, listed

_UNITS = {"s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def seconds_of(value: object) -> object:
    """`90s`, `30m`, `2h`, `1d` in seconds; numbers (also as text) stay. Raises ValueError.

    Not `010`: what YAML takes for 8 is refused, as in every number of a file.
    """
    if not isinstance(value, str):
        return value
    match = re.fullmatch(r"(?!0[0-9]+$)([0-9]+(?:\.[0-9]+)?)([smhd]?)", value.strip())
    if match is None:
        raise ValueError("is no duration; write 90s, 30m, 2h or 7d")
    return float(match[1]) * _UNITS[match[2] or "s"]


@dataclass(frozen=True, slots=True)
class Settings:
    """Seconds unless the name says otherwise; fractions are allowed."""

    poll_wait_sec: float = 25.0
    guard_busy_sec: float = 1.0
    guard_idle_sec: float = 30.0
    source_timeout_sec: float = 0.5
    first_look_sec: float = 5.0
    decisions_per_minute: float = 10.0
    load_window_sec: float = 5.0
    log_tail_sec: float = 1.0
    kill_confirm_sec: float = 0.3
    heartbeat_jitter: float = 0.1
    retry_base_sec: float = 0.25
    retry_cap_sec: float = 8.0
    spool_retry_cap_sec: float = 30.0
    slow_retry_sec: float = 60.0
    http_timeout_sec: float = 15.0
    shutdown_sec: float = 2.0
    wipe_confirm_sec: float = 30.0
    predecessor_sec: float = 20.0
    probe_timeout_sec: float = 5.0
    input_max_mb: float = 1024.0
    input_least_bytes_per_sec: float = 1024.0
    input_slow_sec: float = 30.0
    stdio_max_mb: float = 64.0
    workspace_max_mb: float = 8192.0
    workspace_max_files: float = 100_000
    sweep_sec: float = 60.0
    spool_max_mb: float = 1024.0
    disk_low_mb: float = 256.0


def apply_settings(
    overrides: Mapping[str, object], settings: Settings | None = None
) -> tuple[Settings, dict[str, object]]:
    """Take the overrides that are settings; returns the rest, which belongs to the files.

    Raises ConfigError for a value that is not a number above 0.
    """
    known = {field.name for field in fields(Settings)}
    mine: dict[str, float] = {}
    for name, value in overrides.items():
        if name not in known:
            continue
        if isinstance(value, bool) or not isinstance(value, int | float) or value < 0:
            raise ConfigError(f"--set {name}: write a number, 0 or more, not {value!r}")
        mine[name] = float(value)
    rest = {name: value for name, value in overrides.items() if name not in known}
    return replace(settings or Settings(), **mine), rest


def known_settings() -> str:
    """The names, for messages."""
    return listed((field.name for field in fields(Settings)), limit=99)
